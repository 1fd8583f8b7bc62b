// Tokens that expire every few seconds, in a gateway where nobody may do anything without one.
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { createServer } from "node:http";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { Browser, eventually, faults, Gateway, Publisher } from "./support.mjs";

const SECRET = "a secret of the tests that is long enough";
const KEY = "an API key of the tests, long enough too";
const CONFIG = `
[auth]
environment = "production"
leeway = "0s"
keys = [{ algorithm = "HS256", secret = "${SECRET}" }]
api_keys = [{ name = "publisher", key = "${KEY}", scopes = ["admin"] }]
`;

function token(seconds) {
  const encode = (json) => Buffer.from(JSON.stringify(json)).toString("base64url");
  const verbs = ["subscribe", "publish", "presence", "history"];
  const claims = {
    sub: "ann",
    exp: Math.floor(Date.now() / 1000) + seconds,
    channels: [{ pattern: "orders:*", verbs }],
  };
  const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}

/** What an application's own server does. */
function issuer() {
  const server = createServer((_, response) => {
    server.given = (server.given ?? 0) + 1;
    response.setHeader("access-control-allow-origin", "*");
    response.end(server.refuses ? "no.such.token" : token(server.seconds ?? 4));
  });
  return server.listen(0, "127.0.0.1");
}

test("tokens are renewed in place, and what one does not allow costs nothing else", async (t) => {
  const gateway = await Gateway.start({}, CONFIG);
  const browser = await Browser.start();
  const tokens = issuer();
  t.after(async () => {
    tokens.close();
    await browser.stop();
    await gateway.stop();
  });
  const page = await browser.page();
  await page.evaluate(
    ([url, tokens]) => {
      window.got = [];
      window.told = [];
      const getToken = () => fetch(tokens).then((answer) => answer.text());
      window.client = crossfade.createClient({ url, getToken });
      client.on("*", (event) => told.push(event));
      client.channel("inbox:#bob").listen(() => got.push("what it may not have"));
      client.channel("orders:1").listen(({ data }) => got.push(data));
    },
    [gateway.url, `http://127.0.0.1:${tokens.address().port}`],
  );
  const authorization = `Bearer ${KEY}`;
  await eventually("the channel is read", async () => {
    const answer = await fetch(`${gateway.url}/api/channels`, { headers: { authorization } });
    return (await answer.json()).channels?.some(({ channel }) => channel === "orders:1");
  });
  const publisher = new Publisher(gateway, "orders:1", { perSecond: 100, batch: 5, key: KEY });
  for (const to of ["websocket", "sse", "websocket"]) {
    await page.evaluate((to) => client.migrate(to), to);
    await page.waitForFunction((to) => client.transport === to, to);
    const { given } = tokens;
    await eventually("two more tokens are asked for", () => tokens.given >= given + 2);
  }
  // A page that comes back with a token that has expired meanwhile.
  await page.evaluate(() => dispatchEvent(new PageTransitionEvent("pagehide")));
  await pause(5000);
  await page.evaluate(() => dispatchEvent(new PageTransitionEvent("pageshow")));
  await page.waitForFunction(() => client.state === "connected");
  const sent = await publisher.stop();
  await eventually("the last event arrives", () =>
    page.evaluate((n) => got.length >= n, sent),
  ).catch(() => {});
  const [list, told] = await page.evaluate(() => [got, window.told]);
  assert.deepEqual(faults(list, sent), [], JSON.stringify(told));
  const errors = told.filter(({ type }) => type === "error");
  assert.ok(errors.some(({ code, channel }) => code === "forbidden" && channel === "inbox:#bob"));
  assert.deepEqual(
    errors.filter(({ channel }) => channel !== "inbox:#bob"),
    [],
  );
  assert.deepEqual(
    told.map(({ type }) => type).filter((type) => !["error", "reconnecting"].includes(type)),
    ["connected", "migrated", "migrated", "resumed"],
  );
});

test("a token that never counts ends it, with the reason", async (t) => {
  const gateway = await Gateway.start({}, CONFIG);
  const browser = await Browser.start();
  t.after(async () => {
    await browser.stop();
    await gateway.stop();
  });
  const page = await browser.page();
  for (const transport of ["websocket", "sse"]) {
    const closed = await page.evaluate(
      ([url, transport]) =>
        new Promise((resolve) => {
          const getToken = () => "no.such.token";
          const client = crossfade.createClient({ url, transport, getToken });
          client.on("closed", resolve);
          client.channel("orders:1").listen(() => {});
        }),
      [gateway.url, transport],
    );
    assert.match(closed.reason, /token|unauthorised/, JSON.stringify(closed));
  }
});
