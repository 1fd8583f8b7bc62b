import { describe, expect, it } from "vitest";
import { Age } from "../src/age.ts";
import { Events } from "../src/sse.ts";

describe("a stream", () => {
  const text =
    ': hello\r\n\r\nevent: dashboard\r\ndata: {"a":\r\ndata: 1}\r\n\r\nid: 7\n\ndata: x\n\n';

  it("gives the same events however it is cut", () => {
    const expected = [
      { event: "dashboard", data: '{"a":\n1}' },
      { event: "message", data: "x" },
    ];
    for (const size of [1, 2, 3, 5, 7, 100]) {
      const events = new Events();
      const found = [];
      for (let at = 0; at < text.length; at += size)
        found.push(...events.take(text.slice(at, at + size)));
      expect(found, `in pieces of ${size}`).toEqual(expected);
    }
  });
});

describe("age", () => {
  it("does not mind clocks that differ", () => {
    const age = new Age();
    expect(age.at(0)).toBeNull();
    age.heard(1_000_000, 5_000, "a");
    expect([age.at(5_000), age.at(8_000)]).toEqual([0, 3_000]);
    age.heard(1_002_000, 7_000, "a");
    expect(age.at(7_000)).toBe(0);
    expect(age.theirs(7_500)).toBe(1_002_500);
  });

  it("counts what has lain in a buffer as old", () => {
    const age = new Age();
    age.heard(1_000_000, 5_000, "a");
    age.heard(1_001_000, 14_000, "a");
    expect(age.at(14_000)).toBe(8_000);
  });

  it("measures another node by its own clock", () => {
    const age = new Age();
    age.heard(1_000_000, 5_000, "a");
    age.heard(900_000, 6_000, "b");
    expect(age.at(6_000)).toBe(0);
  });
});
