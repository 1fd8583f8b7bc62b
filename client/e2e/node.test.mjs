// The client in Node: nothing lost over a kill, by WebSocket and by the EventSource that it brings.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { build } from "esbuild";
import { eventually, faults, Gateway, Publisher } from "./support.mjs";

for (const WebSocket of new Set([globalThis.WebSocket, undefined])) {
  test(`Node ${WebSocket ? "with" : "without"} a WebSocket loses nothing over a kill`, async (t) => {
    const home = mkdtempSync(join(tmpdir(), "crossfade-node-"));
    const gateway = await Gateway.start();
    const outfile = join(home, "node.mjs");
    const entryPoints = [new URL("../src/node.ts", import.meta.url).pathname];
    await build({ entryPoints, bundle: true, format: "esm", outfile });
    const { createClient } = await import(outfile);
    const client = createClient({ url: gateway.url, environment: { WebSocket } });
    t.after(async () => {
      client.close();
      await gateway.stop();
      rmSync(home, { recursive: true });
    });
    const got = [];
    const told = [];
    client.on("*", ({ type }) => told.push(type));
    const channel = client.channel("orders:1");
    channel.listen(({ data }) => got.push(data));
    // Subscribed as well once it is answered: requests are done one after the other.
    await eventually("it is connected", () => client.state === "connected");
    await channel.history();
    assert.equal(client.transport, WebSocket ? "websocket" : "sse");
    const publisher = new Publisher(gateway, "orders:1");
    await eventually("events flow", () => got.length > 200);
    await gateway.kill();
    await gateway.run();
    await eventually("they flow again", () => told.includes("resumed"));
    const sent = await publisher.stop();
    await eventually("the last event arrives", () => got.length >= sent).catch(() => {});
    assert.deepEqual(faults(got, sent), [], JSON.stringify(told));
  });
}
