/** The wire as protocol/fixtures has it, which the gateway's tests read too. */
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type ClientFrame, compare, isChannelName, reconnects } from "../src/protocol.js";
import { step } from "../src/machine.js";
import { begin, DEFAULTS, type Happening, type State } from "../src/state.js";
import { World } from "./world.js";

function fixture(name: string) {
  const path = new URL(`../../protocol/fixtures/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(path, "utf8"));
}

const story = fixture("story");

test("channel names", () => {
  const { good, bad, longest } = fixture("channels");
  for (const name of [...good, "x".repeat(longest)]) expect(isChannelName(name), name).toBe(true);
  for (const name of [...bad, "x".repeat(longest + 1)])
    expect(isChannelName(name), name).toBe(false);
});

test("positions", () => {
  for (const { text, epoch, offset } of fixture("positions").good) {
    expect(compare(text, text)).toBe("held");
    expect(compare(undefined, text)).toBe("ahead");
    expect(compare(text, `${epoch}-${offset + 2}`)).toBe("ahead");
    expect(compare(`${epoch}x-${offset}`, text)).toBe("foreign");
  }
});

test("close codes", () => {
  for (const { code, reconnect } of fixture("closes")) {
    expect(reconnects(code), code).toBe(reconnect);
  }
});

/** All that a client says while this happens to it; the numbers are those it was given. */
function said(happenings: Happening[], prepare: (world: World) => void = () => {}): ClientFrame[] {
  const world = new World(1, { transport: "websocket" });
  prepare(world);
  for (const what of happenings) {
    world.happen(what);
    world.run(500);
  }
  world.run(30_000);
  const frames = world.effects.flatMap((effect) => (effect.do === "send" ? effect.frames : []));
  return JSON.parse(JSON.stringify(frames));
}

describe("what the client says", () => {
  const channel = "orders:42";
  const session = "00000000-0000-4000-8000-000000000001";
  const want: Happening = { type: "want", channel, wish: {} };
  const frames = fixture("client-frames");
  const stories: Record<string, () => ClientFrame[]> = {
    connect: () => said([want]),
    "connect with a token": () =>
      said([want], (world) => {
        world.state.token = "t1";
      }),
    "connect again": () =>
      said([want], (world) => {
        world.state.session = session;
      }),
    "connect by plan": () => {
      const world = new World();
      world.state.session = session;
      world.happen(want);
      world.run(500);
      world.happen({ type: "move", to: "sse", reason: "" });
      world.run(2000);
      world.happen({ type: "move", to: "websocket", reason: "" });
      world.run(2000);
      const sent = world.effects.flatMap((effect) => (effect.do === "send" ? effect.frames : []));
      return JSON.parse(JSON.stringify(sent));
    },
    subscribe: () => said([want]),
    "subscribe behind": () => {
      const wish = { since: "k3f9-17", presence: true, state: { at: 3 } };
      return said([{ type: "want", channel, wish }]);
    },
    unsubscribe: () => said([want, { type: "want", channel }]),
    publish: () => {
      const frame = { type: "publish", channel, name: "created", data: { total: 9 } } as const;
      return said([{ type: "request", key: 1, frame: { ...frame, message_id: "m1" } as never }]);
    },
    "publish unnamed": () => {
      const frame = { type: "publish", channel, data: null, message_id: "m1" } as const;
      return said([{ type: "request", key: 1, frame: frame as never }]);
    },
    history: () => {
      const frame = { type: "history", channel, since: "k3f9-1", limit: 100 } as const;
      return said([{ type: "request", key: 1, frame: frame as never }]);
    },
    show: () => said([want, { type: "want", channel, wish: { state: { at: 3 } } }]),
    hide: () => said([{ type: "want", channel, wish: { state: 1 } }, want]),
    pong: () => said([want]),
  };
  for (const [name, expected] of Object.entries<ClientFrame>(frames)) {
    test(name, () => {
      const numbered = "id" in expected ? { ...expected, id: expect.any(Number) } : expected;
      expect(stories[name]?.()).toContainEqual(numbered);
    });
  }
});

describe("a page's story", () => {
  /** A page that has been up for a while, at the fixtures' own time, and goes. */
  let state: State;
  const { welcome, ping } = story.server;
  let { time: now } = welcome;
  const happen = (what: Happening) => {
    const [after, effects] = step(state, { ...what, now, dice: 0 });
    state = after;
    return effects;
  };
  const event = (offset: number, delay: number) => {
    const about = { channel: "a", id: `m${offset}`, position: `e-${offset}`, data: 1 };
    return { type: "event", ...about, time: now - delay } as const;
  };
  now -= 20;
  state = begin({ ...DEFAULTS, transport: "websocket" }, now, undefined, false, "u1");
  state.route = story.route;
  happen({ type: "want", channel: "a", wish: { since: "e-0" } });
  const link = 1;
  const opened = happen({ type: "opened", link });
  now += 40;
  happen({ type: "frame", link, frame: welcome });
  const subscribed = { channel: "a", position: "e-0", recovered: true, id: state.counter };
  happen({ type: "frame", link, frame: { type: "subscribed", ...subscribed } });
  now += 29_960;
  happen({ type: "frame", link, frame: { ...ping, time: now - 20 } });
  happen({ type: "frame", link, frame: event(1, 20) });
  happen({ type: "frame", link, frame: event(2, 700) });
  const gone = happen({ type: "hide" });

  test("connect with a unit", () => {
    expect(JSON.parse(JSON.stringify(opened))[0].frames).toMatchObject([
      { ...story.client["connect with a unit"], id: expect.any(Number) },
    ]);
  });

  test("report and goodbye, by beacon", () => {
    const [beacon] = gone.filter((effect) => effect.do === "beacon");
    const { report, goodbye } = story.client;
    const numbered = { ...report, id: expect.any(Number) };
    expect(JSON.parse(JSON.stringify(beacon?.frames))).toEqual([numbered, goodbye]);
  });
});

describe("what the gateway will say is understood", () => {
  test("migrate", () => {
    const world = new World();
    world.happen({ type: "want", channel: "a", wish: {} });
    world.run(1000);
    world.tell(story.server.migrate);
    world.run(2000);
    expect(world.events).toContainEqual({
      type: "migrated",
      from: "websocket",
      to: "sse",
      reason: "rollback",
    });
  });

  test("a subscription that is taken away", () => {
    const world = new World();
    world.happen({ type: "want", channel: "orders:42", wish: {} });
    world.run(1000);
    world.tell(fixture("server-frames")["taken away"].frame);
    world.run(100);
    expect(world.events.at(-1)).toMatchObject({
      type: "error",
      code: "forbidden",
      channel: "orders:42",
    });
  });
});
