/** The client as an application has it, over a socket that the test speaks through. */
import { expect, expectTypeOf, test } from "vitest";
import type { Channel, Message } from "../src/index.js";
import { client, FakeSocket, socket } from "./shell.js";

test("it connects when somebody listens, below the gateway's path, and tells its state", () => {
  const c = client();
  const told: string[] = [];
  c.on("*", ({ type }) => told.push(type));
  expect(c.state).toBe("idle");
  const stop = c.channel("a").listen(() => {});
  expect(c.state).toBe("connecting");
  expect(socket()).toMatchObject({ url: "ws://gateway/rt/ws", protocol: "crossfade.v1" });
  socket().serve();
  expect([c.state, c.transport, c.member]).toEqual(["connected", "websocket", "me"]);
  stop();
  expect(socket().said).toMatchObject([{ type: "unsubscribe", channel: "a" }]);
  c.close();
  expect([c.state, ...told]).toEqual(["closed", "connected", "closed"]);
});

test("listeners get what they asked for, until they stop, and one's mistake is its own", () => {
  const thrown: unknown[] = [];
  const setTimeout = (run: () => void, ms: number) => {
    if (ms) return globalThis.setTimeout(run, ms);
    try {
      run();
    } catch (cause) {
      thrown.push(cause);
    }
  };
  const c = client({ environment: { setTimeout } });
  const channel = c.channel<{ created: number; gone: number }>("a");
  const got: unknown[] = [];
  channel.listen(() => {
    throw new Error("mine");
  });
  const stop = channel.on("created", (data, { name, position }) =>
    got.push([data, name, position]),
  );
  socket().serve();
  socket().event("a", 1, "created");
  socket().event("a", 2, "gone");
  stop();
  stop();
  socket().event("a", 3, "created");
  expect(got).toEqual([[1, "created", "e-1"]]);
  expect(thrown).toHaveLength(3);
  c.close();
});

test("a loop gets the events that come while it works", async () => {
  const c = client();
  const events = c.channel("a").events({ buffer: 2 });
  socket().serve();
  socket().event("a", 1);
  socket().event("a", 2);
  const got = [];
  for await (const { data } of events) {
    got.push(data);
    if (got.length === 2) break;
  }
  expect(got).toEqual([1, 2]);
  expect(socket().said.at(-1)).toMatchObject({ type: "unsubscribe" });
  c.close();
});

test("a loop that is too slow gets what was held, and learns that there was more", async () => {
  const c = client();
  const events = c.channel("a").events({ buffer: 2 });
  socket().serve();
  for (const offset of [1, 2, 3]) socket().event("a", offset);
  expect(await events.next()).toMatchObject({ value: { data: 1 } });
  expect(await events.next()).toMatchObject({ value: { data: 2 } });
  await expect(events.next()).rejects.toMatchObject({ code: "too_slow" });
  expect(await events.next()).toEqual({ done: true, value: undefined });
  expect(socket().said.filter(({ type }) => type === "unsubscribe")).toHaveLength(1);
  c.close();
});

test("a loop that waits is woken, and ended from outside", async () => {
  const c = client();
  const events = c.channel("a").events();
  socket().serve();
  const waiting = events.next();
  socket().event("a", 7);
  expect(await waiting).toMatchObject({ value: { data: 7 } });
  const end = events.next();
  await events.return?.();
  expect(await end).toEqual({ done: true, value: undefined });
  c.close();
});

test("a publish resolves with its place, or fails with the gateway's reason", async () => {
  const c = client();
  const channel = c.channel("a");
  const [good, bad, late] = [
    channel.publish(1, { id: "x" }),
    channel.publish(2),
    channel.history(),
  ];
  const outcomes = Promise.allSettled([good, bad, late]);
  socket().serve(({ type }) => type !== "subscribe");
  const [first, second] = socket().said.filter(({ type }) => type === "publish");
  const place = { message_id: "x", position: "e-1", duplicate: false };
  socket().tell({ type: "published", id: first?.id ?? 0, ...place });
  socket().tell({ type: "error", id: second?.id ?? 0, code: "too_large", message: "too much" });
  c.close();
  expect(await outcomes).toMatchObject([
    { value: place },
    { reason: { name: "CrossfadeError", code: "too_large", message: "too much" } },
    { reason: { code: "closed" } },
  ]);
});

test("the same name is the same channel, also after nobody listened", () => {
  const c = client();
  const channel = c.channel("a");
  expect(c.channel("a")).toBe(channel);
  channel.listen(() => {})();
  expect(c.channel("a")).toBe(channel);
  let got = 0;
  channel.listen(() => got++);
  socket().serve();
  socket().event("a", 1);
  expect(got).toBe(1);
  c.close();
});

test("it asks for its route as the same one each time, or by its token, and keeps to the answer", async () => {
  const kept = new Map<string, string>();
  const storage = {
    getItem: (key: string) => kept.get(key) ?? null,
    setItem: (key: string, value: string) => void kept.set(key, value),
    removeItem: (key: string) => void kept.delete(key),
  };
  const asked: [string, string | null][] = [];
  const fetch = async (url: string, { headers }: { headers: Headers }) => {
    asked.push([url, headers.get("authorization")]);
    return new Response(JSON.stringify({ transport: "websocket", url: "/there" }));
  };
  const environment = { storage, fetch: fetch as never };
  for (const options of [{}, {}, { token: "t" }]) {
    const c = client({ ...options, transport: "auto", environment });
    c.connect();
    await expect.poll(() => socket()?.url).toBe("ws://gateway/rt/there");
    socket().readyState = 1;
    socket().onopen();
    const unit = kept.get("crossfade:unit");
    expect(socket().said).toMatchObject([{ type: "connect", client: "web/0.1.0", unit }]);
    c.close();
  }
  const url = `http://gateway/rt/api/route?client=${kept.get("crossfade:unit")}&transport=`;
  const mine = [expect.stringContaining(url), null];
  expect(asked).toEqual([
    mine,
    mine,
    [expect.stringContaining("http://gateway/rt/api/route?"), "Bearer t"],
  ]);
});

test("what is no channel name is refused where it is written", () => {
  expect(() => client().channel("a b")).toThrow(/no channel name/);
  expect(FakeSocket.opened).toHaveLength(0);
});

test("presence tells who is there, and who comes and goes", () => {
  const c = client();
  const { presence } = c.channel("a");
  const told: string[] = [];
  presence.on("join", ({ session }) => told.push(`+${session}`));
  presence.on("leave", ({ session }) => told.push(`-${session}`));
  presence.enter({ x: 1 });
  socket().readyState = 1;
  socket().serve();
  const frame = { type: "presence", channel: "a" } as const;
  socket().tell({ ...frame, members: [{ session: "m1" }, { session: "m2" }], count: 2 });
  socket().tell({ ...frame, left: [{ session: "m1" }], count: 1 });
  expect(told).toEqual(["+m1", "+m2", "-m1"]);
  expect([presence.count, presence.members]).toEqual([1, [{ session: "m2" }]]);
  // One who comes later is told at once who is there.
  const seen: number[] = [];
  presence.watch(({ joined }) => seen.push(joined.length));
  expect(seen).toEqual([1]);
  c.close();
});

test("a channel's events have the types that it was given", () => {
  type Orders = { created: { total: number }; deleted: { id: string } };
  type Orders2 = Channel<Orders>;
  expectTypeOf<Parameters<Orders2["listen"]>[0]>()
    .parameter(0)
    .toEqualTypeOf<Message<{ total: number } | { id: string }>>();
  const unused = (channel: Orders2) => {
    channel.on("created", ({ total }) => total.toFixed());
    channel.publish({ id: "1" }, { name: "deleted" });
    // @ts-expect-error no event has this name
    channel.on("changed", () => {});
    // @ts-expect-error not what a created event carries
    channel.publish({ id: "1" }, { name: "created" });
  };
  expect(unused).toBeTypeOf("function");
});
