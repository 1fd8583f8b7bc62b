// A page's list is exactly what was published, in order, once, whatever happens to it meanwhile.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Browser, eventually, faults, Gateway, Network, Publisher } from "./support.mjs";

let browser;
before(async () => {
  browser = await Browser.start();
});
after(() => browser.stop());

/** A page that listens to one channel, through a proxy. */
async function scene(t, { url, options = {}, settings = {}, prepare } = {}) {
  const gateway = await Gateway.start(settings);
  await prepare?.(gateway);
  const proxy = await Network.to(gateway.port);
  const page = await browser.page();
  t.after(async () => {
    await page.close();
    proxy.stop();
    await gateway.stop();
  });
  await page.evaluate(
    ([url, options]) => {
      window.got = [];
      window.told = [];
      window.client = crossfade.createClient({ url, ...options });
      client.on("*", (event) => told.push(event));
      client.channel("orders:1").listen((message) => got.push(message.data));
    },
    [url ?? proxy.url, options],
  );
  await page.waitForFunction(() => client.state === "connected");
  // Subscribed as well: from here on nothing may be missing.
  await eventually("the channel is read", async () => {
    const answer = await fetch(`${gateway.url}/api/channels`);
    return (await answer.json()).channels.some(({ channel }) => channel === "orders:1");
  });
  const moved = async (to) => {
    await page.evaluate((to) => client.migrate(to), to);
    await page.waitForFunction((to) => client.transport === to, to);
  };
  const complete = async (publisher) => {
    const sent = await publisher.stop();
    await eventually("the last event arrives", () =>
      page.evaluate((n) => got.length >= n, sent),
    ).catch(() => {});
    const [list, told] = await page.evaluate(() => [got, window.told]);
    assert.deepEqual(faults(list, sent), [], JSON.stringify(told));
    assert.deepEqual(page.errors, []);
    return { told, sent };
  };
  return { gateway, proxy, page, moved, complete };
}

const types = (told) => told.map(({ type }) => type);

test("500 events a second, while the page moves SSE, WebSocket, SSE", async (t) => {
  const { gateway, page, moved, complete } = await scene(t);
  const publisher = new Publisher(gateway, "orders:1");
  for (const to of ["sse", "websocket", "sse", "websocket", "sse"]) {
    await moved(to);
    const count = await page.evaluate(() => got.length);
    await page.waitForFunction((count) => got.length > count + 200, count);
  }
  const { told } = await complete(publisher);
  // Nobody notices but by being told.
  assert.deepEqual(types(told), ["connected", ...Array(5).fill("migrated")]);
});

test("the flag is flipped to WebSocket and back while 500 events a second flow", async (t) => {
  const order = async (gateway, path, body, method = "POST") => {
    const url = `${gateway.url}/api/migration/${path}/websocket-transport`;
    const answer = await fetch(url, { method, body: JSON.stringify(body) });
    assert.equal(answer.status, 200, await answer.text());
  };
  const settings = { CROSSFADE_ROLLOUT__DRAIN__WITHIN: "200ms" };
  const prepare = (gateway) => order(gateway, "start", { percentage: 0 });
  const { gateway, page, complete } = await scene(t, { settings, prepare });
  assert.equal(await page.evaluate(() => client.transport), "sse");
  const publisher = new Publisher(gateway, "orders:1");
  const goes = async (to) => {
    await page.waitForFunction((to) => client.transport === to, to);
    const count = await page.evaluate(() => got.length);
    await page.waitForFunction((count) => got.length > count + 200, count);
  };
  await order(gateway, "feature-flags", { rolloutPercentage: 100 }, "PUT");
  await goes("websocket");
  // Killed in the middle, it forgets nothing: the flag is in Redis.
  await gateway.kill();
  await gateway.run();
  await goes("websocket");
  await order(gateway, "rollback", { reason: "to see the way back" });
  await goes("sse");
  const { told } = await complete(publisher);
  const moves = told.filter(({ type }) => type === "migrated").map(({ reason }) => reason);
  assert.deepEqual(moves, ["rollout", "rollback"]);
});

test("the gateway is killed and comes back, over either transport", async (t) => {
  const { gateway, page, moved, complete } = await scene(t);
  const publisher = new Publisher(gateway, "orders:1");
  for (const to of ["websocket", "sse"]) {
    if (to === "sse") await moved(to);
    const count = await page.evaluate(() => got.length);
    await page.waitForFunction((count) => got.length > count + 300, count);
    await gateway.kill();
    await page.waitForFunction(() => client.state === "reconnecting");
    await gateway.run();
    await page.waitForFunction(() => client.state === "connected", undefined, { timeout: 60_000 });
  }
  const { told } = await complete(publisher);
  assert.equal(types(told).filter((type) => type === "resumed").length, 2);
  assert.ok(!types(told).includes("reset"));
});

test("a gateway that is stopped says goodbye, and its clients come back when told", async (t) => {
  const { gateway, page, complete } = await scene(t);
  const publisher = new Publisher(gateway, "orders:1");
  await page.waitForFunction(() => got.length > 200);
  await gateway.kill("SIGTERM");
  await gateway.run();
  await page.waitForFunction(() => told.some(({ type }) => type === "resumed"));
  const { told } = await complete(publisher);
  assert.equal(told.find(({ type }) => type === "reconnecting").reason, "draining");
});

test("a network that is cut, slow, and lets no WebSocket through", async (t) => {
  const { gateway, proxy, page, complete } = await scene(t);
  const publisher = new Publisher(gateway, "orders:1");
  const flows = async () => {
    const count = await page.evaluate(() => got.length);
    await page.waitForFunction((count) => got.length > count + 200, count, { timeout: 60_000 });
  };
  for (const upgrades of ["pass", "refuse", "pass", "hang"]) {
    proxy.upgrades = upgrades;
    proxy.delay = upgrades === "pass" ? 150 : 0;
    proxy.cut();
    await flows();
    proxy.delay = 0;
    proxy.cut();
    await flows();
  }
  assert.equal(await page.evaluate(() => client.transport), "sse");
  proxy.upgrades = "pass";
  // By itself, since a WebSocket worked here before.
  await page.waitForFunction(() => client.transport === "websocket", undefined, {
    timeout: 60_000,
  });
  await flows();
  await complete(publisher);
});

test("a WebSocket that hangs from the start costs 2.5 s, and the page remembers", async (t) => {
  const { gateway, proxy, page } = await scene(t, { options: { transport: "sse" } });
  proxy.upgrades = "hang";
  const connect = () =>
    page.evaluate(async (url) => {
      const client = crossfade.createClient({ url });
      const began = performance.now();
      const connected = new Promise((resolve) => client.on("connected", resolve));
      client.channel("orders:1").listen(() => {});
      const { transport } = await connected;
      client.close();
      return { transport, took: performance.now() - began };
    }, proxy.url);
  const first = await connect();
  assert.equal(first.transport, "sse");
  assert.ok(first.took > 2400 && first.took < 4500, `${first.took} ms`);
  const second = await connect();
  assert.equal(second.transport, "sse");
  assert.ok(second.took < 2000, `${second.took} ms`);
  assert.ok(gateway.port);
});

test("a page's own publishes are stored once each, in its order, over a kill and a move", async (t) => {
  const { gateway, page } = await scene(t);
  const publish = page.evaluate(async () => {
    const channel = client.channel("orders:1");
    const answers = [];
    for (let i = 0; i < 400; i++) {
      answers.push(channel.publish(i, { name: "mine" }));
      if (i % 10 === 9) await new Promise((resolve) => setTimeout(resolve, 100));
      if (i === 100) client.migrate("sse");
      if (i === 250) client.migrate("websocket");
    }
    return (await Promise.all(answers)).length;
  });
  await page.waitForFunction(() => got.length > 150);
  await gateway.kill();
  await gateway.run();
  assert.equal(await publish, 400);
  await page.waitForFunction(() => got.length >= 400);
  assert.deepEqual(faults(await page.evaluate(() => got), 400), []);
  const log = await (await fetch(`${gateway.url}/api/channels/orders:1/history?limit=1000`)).json();
  assert.equal(log.events.length, 400);
});

test("two pages see each other once, also while one of them moves", async (t) => {
  const { gateway, proxy, page } = await scene(t);
  const other = await browser.page();
  t.after(() => other.close());
  const join = ([url, name]) => {
    window.client ??= crossfade.createClient({ url });
    const { presence } = client.channel("orders:1");
    window.seen = [];
    for (const what of ["join", "leave", "update"]) {
      presence.on(what, ({ state }) => seen.push(`${what} ${state.name}${state.at ?? ""}`));
    }
    presence.enter({ name });
  };
  await page.evaluate(join, [proxy.url, "ann"]);
  await page.waitForFunction(() => client.channel("orders:1").presence.count === 1);
  await other.evaluate(join, [gateway.url, "bob"]);
  await page.waitForFunction(() => client.channel("orders:1").presence.count === 2);
  for (const to of ["sse", "websocket"]) {
    await other.evaluate((to) => client.migrate(to), to);
    await other.waitForFunction((to) => client.transport === to, to);
  }
  await other.evaluate(() => client.channel("orders:1").presence.enter({ name: "bob", at: 2 }));
  await page.waitForFunction(() => seen.includes("update bob2"));
  await other.evaluate(() => client.close());
  await page.waitForFunction(() => seen.includes("leave bob2"), undefined, { timeout: 15_000 });
  assert.deepEqual(await page.evaluate(() => seen), [
    "join ann",
    "join bob",
    "update bob2",
    "leave bob2",
  ]);
});

test("a plain EventSource loses nothing over a restart", async (t) => {
  const gateway = await Gateway.start();
  const page = await browser.page();
  t.after(async () => {
    await page.close();
    await gateway.stop();
  });
  await page.evaluate((url) => {
    window.got = [];
    const source = new EventSource(`${url}/events?channel=orders:1`);
    window.opened = new Promise((resolve) =>
      source.addEventListener("open", (e) => e.data && resolve()),
    );
    for (const name of ["tick", "tock"]) {
      source.addEventListener(name, (event) => got.push(JSON.parse(event.data).data));
    }
  }, gateway.url);
  await page.evaluate(() => opened);
  const publisher = new Publisher(gateway, "orders:1");
  for (const signal of ["SIGKILL", "SIGTERM"]) {
    const count = await page.evaluate(() => got.length);
    await page.waitForFunction((count) => got.length > count + 200, count);
    await gateway.kill(signal);
    await gateway.run();
  }
  const count = await page.evaluate(() => got.length);
  await page.waitForFunction((count) => got.length > count + 200, count);
  const sent = await publisher.stop();
  await eventually("the last event arrives", () =>
    page.evaluate((n) => got.length >= n, sent),
  ).catch(() => {});
  assert.deepEqual(faults(await page.evaluate(() => got), sent), []);
});
