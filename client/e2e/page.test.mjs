// What browsers do to pages: they freeze them, keep them for later, and sleep with the machine.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { Browser, eventually, faults, Gateway, Publisher } from "./support.mjs";

let browser;
before(async () => {
  browser = await Browser.start();
});
after(() => browser.stop());

/** A page that reads one channel, and a publisher that never stops. */
async function scene(t, options = {}) {
  const gateway = await Gateway.start();
  const page = await browser.page();
  t.after(async () => {
    await page.close();
    await gateway.stop();
  });
  await page.evaluate(
    ([url, options]) => {
      window.got = [];
      window.told = [];
      window.life = [];
      for (const name of ["pagehide", "pageshow"]) {
        addEventListener(name, ({ persisted }) => life.push(`${name} ${persisted}`));
      }
      window.client = crossfade.createClient({ url, ...options });
      client.on("*", (event) => told.push(event));
      client.channel("orders:1").listen((message) => got.push(message.data));
    },
    [gateway.url, options],
  );
  const reads = async () => {
    const answer = await fetch(`${gateway.url}/api/channels`);
    return (await answer.json()).channels.some(({ channel }) => channel === "orders:1");
  };
  await eventually("the channel is read", reads);
  const publisher = new Publisher(gateway, "orders:1");
  await page.waitForFunction(() => got.length > 100);
  const missed = async () => {
    const { sent } = publisher;
    await eventually("much is missed", () => publisher.sent > sent + 1000);
  };
  const complete = async () => {
    await page.waitForFunction(() => client.state === "connected");
    const sent = await publisher.stop();
    await eventually("the last event arrives", () =>
      page.evaluate((n) => got.length >= n, sent),
    ).catch(() => {});
    const [list, told] = await page.evaluate(() => [got, window.told]);
    assert.deepEqual(faults(list, sent), [], JSON.stringify(told));
    assert.deepEqual(page.errors, []);
    return told;
  };
  return { gateway, page, reads, missed, complete };
}

for (const transport of ["websocket", "sse"]) {
  test(`a page on ${transport} that is frozen leaves, and goes on where it was`, async (t) => {
    const { page, reads, missed, complete } = await scene(t, { transport });
    // Headless pages are never hidden, and so never frozen: this is what they are told, by hand.
    await page.evaluate(() => document.dispatchEvent(new Event("freeze")));
    await eventually("it has left", async () => !(await reads()));
    await missed();
    await page.evaluate(() => document.dispatchEvent(new Event("resume")));
    const told = await complete();
    assert.deepEqual(
      told.map(({ type }) => type),
      ["connected", "resumed"],
    );
  });

  test(`a page on ${transport} that is left and come back to goes on where it was`, async (t) => {
    const { page, reads, missed, complete } = await scene(t, { transport });
    await page.goto("about:blank");
    await eventually("it has left", async () => !(await reads()));
    await missed();
    // It comes as it was, so nothing is loaded.
    await page.goBack({ waitUntil: "commit" });
    await complete();
    const life = await page.evaluate(() => window.life);
    assert.ok(life.includes("pagehide true") && life.includes("pageshow true"), `${life}`);
  });

  test(`a page on ${transport} whose machine sleeps goes on where it was`, async (t) => {
    const { page, reads, missed, complete } = await scene(t, { transport });
    const tab = await browser.chromium.newBrowserCDPSession();
    const { processInfo } = await tab.send("SystemInfo.getProcessInfo");
    const renderers = processInfo.filter(({ type }) => type === "renderer");
    for (const { id } of renderers) process.kill(id, "SIGSTOP");
    // The gateway gives up whoever says nothing for two heartbeats, of 2 s each here.
    await missed();
    await pause(5000);
    if (transport === "websocket") await eventually("it is given up", async () => !(await reads()));
    for (const { id } of renderers) process.kill(id, "SIGCONT");
    await page.evaluate(() => dispatchEvent(new Event("online")));
    await complete();
  });
}
