/** The small parts, each by itself. */
import { describe, expect, test } from "vitest";
import { blocks } from "../src/node.js";
import { difference, fold, NOBODY } from "../src/presence.js";
import { noStats, sampled, summary, synchronised } from "../src/report.js";
import { openSse } from "../src/sse.js";

const member = (session: string, state?: unknown) => ({ session, state });

describe("presence", () => {
  test("members and the news after them add up", () => {
    let view = fold(NOBODY, { members: [member("a"), member("b")], count: 2 });
    view = fold(view, { joined: [member("c")], left: [{ session: "a" }], count: 2 });
    view = fold(view, { updated: [member("b", 1)], count: 2 });
    expect([...view.members.values()]).toEqual([member("b", 1), member("c")]);
  });

  test("members after a reconnect are told as what changed", () => {
    const before = fold(NOBODY, { members: [member("a"), member("b")], count: 2 });
    const after = fold(NOBODY, { members: [member("b", 1), member("c")], count: 2 });
    expect(difference(before, after)).toMatchObject({
      joined: [member("c")],
      updated: [member("b", 1)],
      left: [member("a")],
    });
    const same = fold(NOBODY, { members: [member("a"), member("b")], count: 2 });
    expect(difference(before, same)).toBeUndefined();
  });

  test("a channel grown too large is counted, and nobody is said to have left", () => {
    const small = fold(NOBODY, { members: [member("a")], count: 1 });
    const large = fold(small, { count: 5000 });
    expect(difference(small, large)).toEqual({
      joined: [],
      updated: [],
      left: [],
      members: [],
      count: 5000,
    });
    const again = fold(large, { members: [member("a")], count: 1 });
    expect(difference(large, again)).toMatchObject({
      joined: [],
      members: [member("a")],
      count: 1,
    });
  });

  test("the last one leaving is told", () => {
    const one = fold(NOBODY, { members: [member("a")], count: 1 });
    const none = fold(one, { left: [{ session: "a" }], count: 0 });
    expect(difference(one, none)).toMatchObject({ left: [member("a")], count: 0 });
  });
});

describe("a report", () => {
  const CLOCK = { low: Number.NEGATIVE_INFINITY, high: Number.POSITIVE_INFINITY };
  const stats = (...delays: number[]) => {
    const stats = noStats(0);
    for (const delay of delays) {
      stats.events = (stats.events ?? 0) + 1;
      sampled(stats, delay, 0.5);
    }
    return stats;
  };

  test("has nothing to say when nothing happened", () => {
    expect(summary(noStats(0), CLOCK, 10)).toBeUndefined();
  });

  test("corrects delays by the clock, which lies between the quickest of both ways", () => {
    const clock = { ...CLOCK };
    // Our clock is 5000 ahead; the welcome takes 20 there and 20 back, a slow ping tells nothing.
    synchronised(clock, 1000 + 20, 6000 + 40, 6000);
    synchronised(clock, 2000, 7300);
    const told = summary(stats(...Array(99).fill(5020), 5700), clock, 60_000);
    expect(told).toMatchObject({
      events: 100,
      clock: "measured",
      delays: expect.arrayContaining([20]),
    });
    synchronised(clock, 3000, 8002);
    expect(clock).toEqual({ low: 4980, high: 5002 });
  });

  test("samples as many as the gateway takes", () => {
    const clock = { low: 0, high: 0 };
    const told = summary(stats(...Array(100).fill(7)), clock, 1);
    expect(told).toMatchObject({ events: 100, delays: Array(30).fill(7) });
  });

  test("takes what is told last where a clock was set meanwhile", () => {
    const clock = { low: 4980, high: 5002 };
    synchronised(clock, 1000, 900, 850);
    expect(clock).toEqual({ low: -150, high: -100 });
  });

  test("says so when it can only compare with the quickest event", () => {
    const clock = { ...CLOCK, high: -4980 };
    expect(summary(stats(-4980, -4900), clock, 1)).toMatchObject({
      clock: "floor",
      delays: [0, 80],
    });
  });
});

describe("Node's stream", () => {
  const text = [
    'retry: 2000\nid: k3-1\ndata: {"type":"welcome","session":"s"}\n\n',
    ': hello\n\nid: k3-2\r\ndata: {"é":"a: b"}\r\n\r\n',
    'event: crossfade.goodbye\nretry: 5\ndata: {"type":"goodbye"}\n\n',
  ].join("");
  const whole = [
    { event: "message", data: '{"type":"welcome","session":"s"}', id: "k3-1" },
    { event: "message", data: "", id: undefined },
    { event: "message", data: '{"é":"a: b"}', id: "k3-2" },
    { event: "crossfade.goodbye", data: '{"type":"goodbye"}', id: undefined },
  ];

  test("is the same in whatever pieces it comes", () => {
    for (let size = 1; size < text.length; size++) {
      const cut = blocks();
      const got = [];
      for (let at = 0; at < text.length; at += size) got.push(...cut(text.slice(at, at + size)));
      expect(got).toEqual(whole);
    }
  });
});

/** An EventSource and a fetch that a test speaks through. */
function stream(answer: (body: string) => Response | Promise<Response>) {
  const told: unknown[] = [];
  const source = {
    closed: false,
    named: new Map<string, (event: object) => void>(),
    onopen: () => {},
    onerror: () => {},
    onmessage: (_: { data: string; lastEventId: string }) => {},
    addEventListener: (name: string, run: (event: object) => void) => source.named.set(name, run),
    close: () => {
      source.closed = true;
    },
  };
  const asked: string[] = [];
  const fetch = async (url: string, { method = "GET", body = "" } = {}) => {
    asked.push(`${method} ${url}`);
    return answer(body);
  };
  const make = class {
    constructor() {
      // biome-ignore lint/correctness/noConstructorReturn: there is one, which the test holds.
      return source;
    }
  } as unknown as typeof EventSource;
  const wire = openSse(make, fetch as never, "http://g/events?channel=a", {
    opened: () => told.push("opened"),
    hear: (text, at) => told.push([JSON.parse(text).type, at]),
    answer: (frame) => told.push(frame),
    lost: (why) => told.push({ lost: why }),
  });
  return { told, source, asked, wire };
}
const settled = () => new Promise((resolve) => setTimeout(resolve, 5));
const json = (body: unknown, status = 200, headers = {}) =>
  new Response(JSON.stringify(body), { status, headers });

describe("a stream", () => {
  test("hears every frame in onmessage, and a goodbye that is said before any", () => {
    const { told, source } = stream(() => json([]));
    source.onopen();
    source.onmessage({ data: '{"type":"welcome","session":"s"}', lastEventId: "k3-1" });
    source.named.get("crossfade.goodbye")?.({ data: '{"type":"goodbye"}', lastEventId: "" });
    expect(told).toEqual(["opened", ["welcome", "k3-1"], ["goodbye", ""]]);
  });

  test("does not come back by itself, and asks why it was refused", async () => {
    const error = { code: "forbidden", message: "you may not" };
    const { told, source, asked } = stream(() => json({ error }, 403, { "retry-after": "7" }));
    source.onerror();
    await settled();
    expect(source.closed).toBe(true);
    expect(asked).toEqual(["GET http://g/events?channel=a"]);
    const lost = { status: 403, after: 7000, reason: "you may not", error: "forbidden" };
    expect(told).toEqual([{ lost }]);
  });

  test("that broke after it was open asks nothing", async () => {
    const { told, source, asked } = stream(() => json({}));
    source.onopen();
    source.onerror();
    await settled();
    expect([told, asked]).toEqual([["opened", { lost: {} }], []]);
  });

  test("posts in order, one list at a time, and gives the answers", async () => {
    const bodies: string[] = [];
    const { told, source, wire, asked } = stream((body) => {
      bodies.push(body);
      return json([{ type: "subscribed" }]);
    });
    source.onmessage({ data: '{"type":"welcome","session":"s1"}', lastEventId: "" });
    wire.send([{ type: "unsubscribe", id: 1, channel: "a" }]);
    for (let id = 2; id < 150; id++) wire.send([{ type: "unsubscribe", id, channel: "a" }]);
    await settled();
    expect(asked).toEqual(Array(3).fill("POST http://g/events/s1"));
    expect(bodies.map((body) => JSON.parse(body).length)).toEqual([1, 100, 48]);
    expect(told).toHaveLength(4);
  });

  test("that is gone loses the connection; a bad list only what is in it", async () => {
    const gone = stream(() => json({ error: { code: "session_unknown" } }, 404));
    gone.wire.send([{ type: "goodbye" }]);
    const bad = stream(() => json({ error: { code: "too_large", message: "no" } }, 413));
    bad.wire.send([{ type: "unsubscribe", id: 9, channel: "a" }]);
    await settled();
    expect(gone.told).toMatchObject([{ lost: { status: 404, error: "session_unknown" } }]);
    expect(bad.told).toEqual([{ type: "error", id: 9, code: "too_large", message: "no" }]);
  });
});
