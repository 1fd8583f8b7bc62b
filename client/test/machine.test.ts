/** How a client connects, moves and comes back, told one story at a time. */
import { describe, expect, test } from "vitest";
import { deadline, step } from "../src/machine.js";
import type { ClientEvent, Effect, Settings } from "../src/state.js";
import { World } from "./world.js";

function world(settings: Partial<Settings> = {}, token?: string): World {
  const world = new World(7, settings, token);
  world.happen({ type: "want", channel: "a", wish: {} });
  return world;
}

function connected(settings: Partial<Settings> = {}, token?: string): World {
  const connected = world(settings, token);
  connected.run(1000);
  expect(connected.state.phase).toBe("connected");
  return connected;
}

function told(world: World): string[] {
  return world.events.map(({ type }) => type);
}

function last<T extends ClientEvent["type"]>(world: World, type: T) {
  return world.events.findLast(
    (event): event is Extract<ClientEvent, { type: T }> => event.type === type,
  );
}

function opened(world: World): (Effect & { do: "open" })[] {
  return world.effects.filter((effect) => effect.do === "open");
}

function sent(world: World, type: string) {
  const frames = world.effects.flatMap((effect) => (effect.do === "send" ? effect.frames : []));
  return frames.filter((frame) => frame.type === type);
}

const transport = (world: World) => world.state.link?.transport;

describe("falling back", () => {
  test("a WebSocket that does not answer within 2.5 s is replaced by SSE", () => {
    const w = new World();
    w.websockets = "hang";
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(2400);
    expect(opened(w)).toHaveLength(1);
    w.run(500);
    expect(transport(w)).toBe("sse");
    expect(last(w, "connected")).toMatchObject({ transport: "sse", fallback: true });
    expect(w.effects).toContainEqual({ do: "remember", blocked: true });
    expect(w.state.stats.fallbacks).toBe(1);
  });

  test("the WebSocket is tried again beside the stream, less and less often, until it works", () => {
    const w = new World();
    w.websockets = "hang";
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(600_000);
    const tries = opened(w).filter((effect) => effect.transport === "websocket").length;
    expect(tries).toBeGreaterThan(3);
    expect(tries).toBeLessThan(9);
    expect(transport(w)).toBe("sse");
    w.websockets = "pass";
    w.run(700_000);
    expect(transport(w)).toBe("websocket");
    expect(last(w, "migrated")).toMatchObject({ from: "sse", to: "websocket" });
    expect(w.effects).toContainEqual({ do: "remember", blocked: false });
    expect(told(w).filter((type) => type === "reconnecting")).toEqual([]);
  });

  test("where it worked before, one failure is not remembered", () => {
    const w = connected();
    w.websockets = "refuse";
    w.cut();
    w.run(400);
    w.websockets = "pass";
    w.run(10_000);
    expect(transport(w)).toBe("websocket");
    expect(w.effects.some((effect) => effect.do === "remember" && effect.blocked)).toBe(false);
  });

  test("a gateway that is down says nothing about WebSockets", () => {
    const w = new World();
    w.up = false;
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(20_000);
    w.up = true;
    w.run(60_000);
    expect(w.state.phase).toBe("connected");
    expect(w.effects.filter((effect) => effect.do === "remember")).toEqual(
      transport(w) === "sse" ? [{ do: "remember", blocked: true }] : [],
    );
  });

  test("a page that knows WebSockets do not get through begins with SSE", () => {
    const w = new World();
    w.state.failures = 1;
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(1000);
    expect(opened(w).map((effect) => effect.transport)).toEqual(["sse"]);
  });

  test("who asks for one transport gets no other", () => {
    const w = new World(1, { transport: "websocket" });
    w.websockets = "refuse";
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(60_000);
    expect(new Set(opened(w).map((effect) => effect.transport))).toEqual(new Set(["websocket"]));
  });
});

describe("coming back", () => {
  test("a goodbye's pause is kept to, also when the network wakes the client", () => {
    const w = connected();
    w.goodbye(4003, true, 4000);
    w.run(100);
    expect(last(w, "reconnecting")).toMatchObject({ reason: "told 4003", after: 4000 });
    w.happen({ type: "wake" });
    w.run(3000);
    expect(opened(w)).toHaveLength(1);
    w.run(2000);
    expect(last(w, "resumed")).toMatchObject({ transport: "websocket" });
  });

  test("Retry-After is kept to, and a little more, so that not all come at once", () => {
    const w = connected({ transport: "sse" });
    const link = w.state.link?.id ?? 0;
    w.happen({ type: "lost", link, why: { status: 503, after: 7000 } });
    const after = last(w, "reconnecting")?.after ?? 0;
    expect(after).toBeGreaterThanOrEqual(7000);
    expect(after).toBeLessThanOrEqual(8000);
  });

  test("pauses double and are drawn anew each time", () => {
    const w = connected();
    w.up = false;
    w.cut();
    w.run(600_000);
    const pauses = w.events.flatMap((event) =>
      event.type === "reconnecting" ? [event.after] : [],
    );
    expect(new Set(pauses).size).toBe(pauses.length);
    expect(Math.max(...pauses.slice(0, 2))).toBeLessThanOrEqual(1000);
    expect(Math.max(...pauses)).toBeGreaterThan(10_000);
    expect(Math.max(...pauses)).toBeLessThanOrEqual(30_000);
  });

  test("the network coming back cuts a pause short", () => {
    const w = connected();
    w.up = false;
    w.cut();
    w.run(100_000);
    w.up = true;
    w.happen({ type: "wake" });
    w.run(300);
    expect(w.state.phase).toBe("connected");
  });

  test("silence for two heartbeats is a lost connection", () => {
    const w = connected();
    w.darken();
    w.run(49_000);
    expect(w.state.phase).toBe("connected");
    w.run(27_000);
    expect(last(w, "reconnecting")).toMatchObject({ reason: "silent" });
    w.run(5000);
    expect(w.state.phase).toBe("connected");
  });

  test("a connection that died while the page slept is found out at once", () => {
    for (const transport of ["websocket", "sse"] as const) {
      const w = connected({ transport });
      w.darken();
      w.publish("a", "missed");
      w.happen({ type: "wake" });
      w.run(7000);
      expect(w.delivered.map(({ data }) => data)).toEqual(["missed"]);
    }
  });

  test("final close codes end it, others do not", () => {
    for (const code of [1000, 1002, 4000, 4001, 4006, 4007]) {
      const w = connected();
      w.happen({ type: "lost", link: w.state.link?.id ?? 0, why: { code } });
      expect(last(w, "closed"), `${code}`).toMatchObject({ code });
    }
    for (const code of [1001, 1006, 1011, 1012, 4003, 4004, 4005, 4008]) {
      const w = connected();
      w.happen({ type: "lost", link: w.state.link?.id ?? 0, why: { code } });
      w.run(20_000);
      expect(w.state.phase, `${code}`).toBe("connected");
    }
  });

  test("the goodbye's own word counts more than its code's", () => {
    const w = connected();
    w.goodbye(4006, true, 500);
    w.run(5000);
    expect(last(w, "resumed")).toBeDefined();
  });

  test("a closed client comes back only when told to", () => {
    const w = connected();
    w.happen({ type: "close" });
    w.publish("a", 1);
    w.run(60_000);
    expect(w.living).toHaveLength(0);
    w.happen({ type: "connect" });
    w.run(1000);
    expect(w.delivered.map(({ data }) => data)).toEqual([1]);
  });

  test("a page that is put away leaves, and goes on where it was", () => {
    const w = connected();
    w.happen({ type: "hide" });
    w.run(100_000);
    expect(w.living).toHaveLength(0);
    w.publish("a", "while away");
    w.happen({ type: "show" });
    w.run(1000);
    expect(w.delivered.map(({ data }) => data)).toEqual(["while away"]);
    expect(told(w)).toEqual(["connected", "resumed"]);
  });
});

describe("moving", () => {
  test("the old connection serves until the new one has answered", () => {
    const w = connected();
    w.happen({ type: "move", to: "sse", reason: "test" });
    expect(w.state.link?.transport).toBe("websocket");
    expect(w.living).toHaveLength(1);
    for (let i = 0; i < 40; i++) {
      w.publish("a", i);
      w.run(10);
    }
    w.run(1000);
    expect(transport(w)).toBe("sse");
    expect(w.living).toHaveLength(1);
    expect(w.delivered.map(({ data }) => data)).toEqual([...Array(40).keys()]);
    expect(told(w)).toEqual(["connected", "migrated"]);
  });

  test("one that fails stays where it was", () => {
    const w = connected();
    w.streams = "hang";
    w.tell({ type: "migrate", transport: "sse", within: 5000, reason: "rollback" });
    w.run(20_000);
    expect(transport(w)).toBe("websocket");
    expect(told(w)).toEqual(["connected"]);
    expect(w.state.stats.failedMigrations).toBe(1);
    // It was told where it belongs all the same.
    w.streams = "pass";
    w.cut();
    w.run(10_000);
    expect(transport(w)).toBe("sse");
  });

  test("a move that loses its old connection becomes the reconnect", () => {
    const w = connected();
    w.happen({ type: "move", to: "sse", reason: "test" });
    w.happen({ type: "lost", link: w.state.link?.id ?? 0, why: { code: 1006 } });
    w.run(2000);
    expect(transport(w)).toBe("sse");
    expect(w.living).toHaveLength(1);
  });

  test("who is moved by somebody else's connection does not come back", () => {
    const w = connected();
    w.goodbye(4007, false, 0);
    w.run(60_000);
    expect(last(w, "closed")).toMatchObject({ code: 4007 });
  });

  test("requests under way are answered once, whichever connection carried them", () => {
    const w = connected();
    for (let key = 1; key <= 30; key++) {
      const frame = { type: "publish", channel: "a", data: key, message_id: `p${key}` } as const;
      w.happen({ type: "request", key, frame });
      if (key === 10) w.happen({ type: "move", to: "sse", reason: "test" });
      if (key === 20) w.cut();
      w.run(20);
    }
    w.run(20_000);
    expect(w.answers.size).toBe(30);
    expect(w.delivered.map(({ data }) => data)).toEqual(w.log("a").events.map(({ data }) => data));
    expect(new Set(w.delivered.map(({ id }) => id)).size).toBe(30);
  });
});

describe("tokens", () => {
  test("one is fetched before connecting, and anew when it expired", () => {
    const w = connected({ refreshable: true });
    expect(sent(w, "connect")).toMatchObject([{ token: "t1" }]);
    w.goodbye(4002, true, 0);
    w.run(5000);
    expect(sent(w, "connect").at(-1)).toMatchObject({ token: "t2", session: w.state.session });
  });

  test("one is refreshed in place before it expires", () => {
    const w = connected({ refreshable: true });
    w.tell({ type: "expiring", in: 10_000 });
    w.run(1000);
    expect(sent(w, "connect").at(-1)).toMatchObject({ token: "t2" });
    expect(told(w)).toEqual(["connected"]);
  });

  test("the gateway refusing each of them ends it", () => {
    const w = connected({ refreshable: true });
    const closed = () => (w.state.phase as string) === "closed";
    for (let i = 0; i < 4 && !closed(); i++) {
      w.happen({ type: "lost", link: w.state.link?.id ?? 0, why: { code: 4001 } });
      for (let j = 0; j < 1000 && !w.state.link && !closed(); j++) w.run(10);
    }
    expect(last(w, "closed")).toMatchObject({ code: 4001 });
  });

  test("a fixed one that expired ends it", () => {
    const w = connected({}, "fixed");
    w.goodbye(4002, true, 0);
    w.run(1000);
    expect(last(w, "closed")).toMatchObject({ code: 4002, reason: "told 4002" });
  });

  test("none to be had is tried again", () => {
    const w = new World(1, { refreshable: true });
    w.tokenFails = true;
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(5000);
    expect(last(w, "reconnecting")).toMatchObject({ reason: "no token" });
    w.tokenFails = false;
    w.run(30_000);
    expect(w.state.phase).toBe("connected");
  });
});

describe("routes", () => {
  test("a route that does not answer is not waited for", () => {
    const w = new World();
    w.route = "silent";
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(6000);
    expect(transport(w)).toBe("websocket");
  });

  test("a client of the old arm uses SSE and does not try the WebSocket", () => {
    const w = new World();
    w.route = "silent";
    w.happen({ type: "want", channel: "a", wish: {} });
    const route = { transport: "sse", url: "/stream", cohort: "control" } as const;
    w.happen({ type: "fetched", ask: w.state.asked, route });
    w.run(600_000);
    expect(opened(w).map(({ path }) => path)).toEqual([
      "/stream?format=frames&channel=a&client=web%2F0.1.0",
    ]);
  });
});

describe("what is asked", () => {
  test("a refused channel does not spoil the others, on either transport, nor a move", () => {
    for (const transport of ["websocket", "sse"] as const) {
      const w = new World(1, { transport });
      for (const channel of ["a", "forbidden", "b"]) {
        w.happen({ type: "want", channel, wish: {} });
      }
      w.run(5000);
      for (const to of ["sse", "websocket", "sse"] as const) {
        for (const channel of ["a", "b"]) w.publish(channel, to);
        w.run(1000);
        w.happen({ type: "move", to, reason: "test" });
        w.run(2000);
        expect(w.state.link?.transport).toBe(to);
      }
      expect(last(w, "error")).toMatchObject({ code: "forbidden", channel: "forbidden" });
      expect(w.delivered).toHaveLength(6);
    }
  });

  test("a stream for a forbidden channel alone says so, and waits for another", async () => {
    const w = new World(1, { transport: "sse" });
    const frame = { type: "history", channel: "forbidden" } as const;
    w.happen({ type: "request", key: 1, frame });
    w.run(1000);
    expect(w.answers.get(1)).toMatchObject({ code: "forbidden" });
    w.happen({ type: "want", channel: "forbidden", wish: {} });
    w.run(1000);
    expect(last(w, "error")).toMatchObject({ channel: "forbidden" });
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(1000);
    expect(w.state.phase).toBe("connected");
  });

  test("a stream for very many channels has an address that gets through", () => {
    const w = new World(1, { transport: "sse" });
    const names = [...Array(120).keys()].map((n) => `${"long".repeat(20)}${n}`);
    for (const channel of names) w.happen({ type: "want", channel, wish: {} });
    w.run(10_000);
    expect(Math.max(...opened(w).map(({ path }) => path.length))).toBeLessThan(5000);
    for (const channel of names) w.publish(channel, 1);
    w.run(1000);
    expect(w.delivered).toHaveLength(120);
  });

  test("a broker that is away is asked again", () => {
    const w = new World();
    w.unavailable = true;
    w.happen({ type: "want", channel: "a", wish: {} });
    const frame = { type: "publish", channel: "a", data: 1, message_id: "m" } as const;
    w.happen({ type: "request", key: 1, frame });
    w.run(10_000);
    expect(w.answers.size).toBe(0);
    w.unavailable = false;
    w.run(5000);
    expect(w.answers.get(1)).toMatchObject({ type: "published" });
  });

  test("more than the gateway's rate is held back, not refused", () => {
    const w = connected();
    for (let key = 1; key <= 600; key++) {
      const frame = { type: "publish", channel: "a", data: key, message_id: `p${key}` } as const;
      w.happen({ type: "request", key, frame });
    }
    expect(sent(w, "publish").length).toBeLessThanOrEqual(80);
    w.run(1000);
    expect(sent(w, "publish").length).toBeLessThanOrEqual(120);
    w.run(15_000);
    expect(w.answers.size).toBe(600);
    expect(w.state.link?.sent.size).toBe(0);
    expect(w.delivered.map(({ data }) => data)).toEqual([...Array(600).keys()].map((i) => i + 1));
  });

  test("more than may wait is refused at once", () => {
    const w = new World(1, { pending: 2 });
    w.up = false;
    for (let key = 1; key <= 3; key++) {
      w.happen({ type: "request", key, frame: { type: "history", channel: "a" } });
    }
    expect(w.answers.get(3)).toMatchObject({ code: "limit_exceeded" });
  });

  test("a stream is opened with a publish's channel where nothing else is wanted", () => {
    const w = new World(1, { transport: "sse" });
    const frame = { type: "publish", channel: "quiet", data: 1, message_id: "m" } as const;
    w.happen({ type: "request", key: 1, frame });
    w.run(1000);
    expect(w.answers.get(1)).toMatchObject({ type: "published" });
    expect(w.delivered).toEqual([]);
  });

  test("what was heard before somebody stopped listening does not come again", () => {
    const w = connected();
    w.publish("a", 1);
    w.run(100);
    w.happen({ type: "want", channel: "a" });
    w.happen({ type: "want", channel: "a", wish: {} });
    w.run(100);
    w.publish("a", 2);
    w.run(100);
    expect(w.delivered.map(({ data }) => data)).toEqual([1, 2]);
  });

  test("who is there is taken from one connection at a time", () => {
    const w = connected();
    w.happen({ type: "want", channel: "a", wish: { presence: true, state: { x: 1 } } });
    w.run(1000);
    expect(sent(w, "subscribe").at(-1)).toMatchObject({ presence: true, state: { x: 1 } });
    w.tell({ type: "presence", channel: "a", members: [{ session: "m1" }], count: 1 });
    w.run(100);
    expect(w.state.shown.get("a")?.count).toBe(1);
    w.happen({ type: "want", channel: "a", wish: { presence: true, state: { x: 2 } } });
    w.happen({ type: "want", channel: "a", wish: { presence: true } });
    w.run(100);
    expect(sent(w, "presence")).toMatchObject([{ state: { x: 2 } }, { state: null }]);
  });
});

test("a client that is closed, or away, waits for nothing", () => {
  for (const type of ["close", "hide"] as const) {
    const w = connected();
    w.happen({ type });
    expect(deadline(w.state)).toBe(Number.POSITIVE_INFINITY);
  }
});

test("a page that goes says what it measured and that it leaves by its own will", () => {
  for (const transport of ["websocket", "sse"] as const) {
    const w = connected({ transport });
    const { session } = w.state;
    w.happen({ type: "hide" });
    const beacons = w.effects.filter((effect) => effect.do === "beacon");
    const stats = { connects: 1, transport };
    expect(beacons).toMatchObject([
      { session, frames: [{ type: "report", stats }, { type: "goodbye" }] },
    ]);
    w.happen({ type: "show" });
    w.run(1000);
    expect(last(w, "resumed")).toMatchObject({ transport });
  }
});

test("a report tells where the route put the client", () => {
  const w = new World(7, { reportEvery: 10_000 });
  w.route = "silent";
  w.happen({ type: "want", channel: "a", wish: {} });
  const places = {
    cohort: "new" as const,
    bucket: 37.12,
    version: 12,
    component: "websocket-transport",
  };
  const route = { transport: "websocket", url: "/ws", ...places } as const;
  w.happen({ type: "fetched", ask: w.state.asked, route });
  w.run(14_000);
  expect(sent(w, "report")).toMatchObject([{ stats: { cohort: "new", version: 12 } }]);
});

test("the same state and input lead to the same", () => {
  const w = connected();
  w.publish("a", 1);
  const input = { type: "move", to: "sse", reason: "", now: w.now, dice: 0.3 } as const;
  const [one, other] = [structuredClone(w.state), structuredClone(w.state)];
  expect(step(one, input)).toEqual(step(other, input));
});

test("a report goes out once in a while, if there is something to tell", () => {
  const w = connected({ reportEvery: 10_000 });
  w.run(5000);
  w.publish("a", 1);
  w.run(30_000);
  expect(sent(w, "report")).toHaveLength(1);
  expect(sent(w, "report")[0]).toMatchObject({
    stats: { connects: 1, events: 1, transport: "websocket", delays: [expect.any(Number)] },
  });
});

test("a gateway that takes no reports is not bothered again", () => {
  const w = connected({ reportEvery: 10_000 });
  w.run(14_000);
  const id = w.state.reported ?? 0;
  w.tell({ type: "error", id, code: "unknown_type", message: "" });
  w.cut();
  w.run(60_000);
  expect(sent(w, "report")).toHaveLength(1);
  expect(told(w)).not.toContain("error");
});
