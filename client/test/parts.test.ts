/** The small parts, each by itself. */
import { describe, expect, test } from "vitest";
import { difference, fold, NOBODY } from "../src/presence.js";
import { Queue } from "../src/queue.js";
import { noStats, sampled, summary, synchronised } from "../src/report.js";
import { blocks, frameOf } from "../src/sse.js";

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
  test("has nothing to say when nothing happened", () => {
    expect(summary(noStats(0), { floor: Number.POSITIVE_INFINITY }, 10)).toBeUndefined();
  });

  test("corrects delays by the clock that was measured, by the best round trip", () => {
    let stats = noStats(0);
    for (let i = 0; i < 100; i++) stats = sampled(stats, 20 - 5000, 0.5);
    let clock = synchronised({ floor: -4980 }, 1000, 1040, 6020);
    clock = synchronised(clock, 2000, 3000, 9999);
    expect(summary(stats, clock, 60_000)).toMatchObject({
      events: 100,
      latency: { samples: 64, p50: 20, p95: 20, clock: "measured" },
    });
  });

  test("says so when it can only compare with the quickest event", () => {
    const stats = sampled(sampled(noStats(0), -4980, 0), -4900, 0);
    expect(summary(stats, { floor: -4980 }, 1)).toMatchObject({
      latency: { p50: 80, max: 80, clock: "floor" },
    });
  });
});

describe("a stream", () => {
  const text = [
    'retry: 2000\nid: a~k3-1,b~k4-2\nevent: open\ndata: {"type":"welcome","session":"s"}\n\n',
    'id: k3-2\nevent: created\ndata: {"channel":"a","id":"1","data":{"é":"a: b"},"position":"k3-2","time":1}\n\n',
    'data: {"channel":"a","id":"2","data":null,"position":"k3-3","time":1}\n\n',
    ": ping\n\n",
    'event: crossfade.goodbye\nretry: 5\ndata: {"type":"goodbye"}\n\n',
  ].join("");
  const frames = [
    { type: "welcome", session: "s" },
    {
      type: "event",
      name: "created",
      channel: "a",
      id: "1",
      data: { é: "a: b" },
      position: "k3-2",
      time: 1,
    },
    { type: "event", channel: "a", id: "2", data: null, position: "k3-3", time: 1 },
    { type: "ping" },
    { type: "goodbye" },
  ];

  test("is the same in whatever pieces it comes", () => {
    for (let size = 1; size < text.length; size++) {
      const cut = blocks();
      const got = [];
      for (let at = 0; at < text.length; at += size) got.push(...cut(text.slice(at, at + size)));
      expect(got.map(frameOf)).toEqual(frames);
      expect(got[0]?.id).toBe("a~k3-1,b~k4-2");
    }
  });
});

describe("a loop's queue", () => {
  test("gives what it holds, then says that there was more than it can hold", async () => {
    let stopped = 0;
    const queue = new Queue<number>(2, () => stopped++);
    for (const item of [1, 2, 3]) queue.push(item);
    expect(await queue.next()).toEqual({ done: false, value: 1 });
    expect(await queue.next()).toEqual({ done: false, value: 2 });
    await expect(queue.next()).rejects.toMatchObject({ code: "too_slow" });
    expect(await queue.next()).toEqual({ done: true, value: undefined });
    expect(stopped).toBe(1);
  });

  test("wakes a loop that waits, and ends with it", async () => {
    const queue = new Queue<number>(2, () => {});
    const waiting = queue.next();
    queue.push(7);
    expect(await waiting).toEqual({ done: false, value: 7 });
    const end = queue.next();
    await queue.return();
    expect(await end).toEqual({ done: true, value: undefined });
  });
});
