import { describe, expect, it } from "vitest";
import * as words from "../src/words.ts";

const T = "\u202f";

describe("numbers", () => {
  it("have as many digits as say something", () => {
    expect(
      [0, 0.004, 0.04, 1, 1.04, 1.4, 9.994, 24.71, 99.94, 100, 1234.5].map(words.short),
    ).toEqual(["0", "<0.01", "0.04", "1", "1.04", "1.4", "9.99", "24.7", "99.9", "100", "1235"]);
    expect(words.short(null)).toBe("–");
    expect(words.percent(24.7)).toBe(`24.7${T}%`);
    expect(words.many(12_345)).toBe(`12${T}345`);
  });

  it("are counted of something, or of nothing", () => {
    expect(words.counted({ affected: 31, total: 500 })).toBe(`31 of 500 (6.2${T}%)`);
    expect(words.counted({ affected: 0, total: 0 })).toBe("none");
    expect(words.share({ affected: 0, total: 0 })).toBeNull();
  });

  it("have open ends where an interval has none", () => {
    expect(words.range({ low: 0.2, high: 4.1 }, "×")).toBe(`0.2 to 4.1${T}×`);
    expect(words.range({ low: -0.3, high: 4 }, "×")).toBe(`0 to 4${T}×`);
    expect(words.range({ low: null, high: 9 }, "×")).toBe(`up to 9${T}×`);
    expect(words.range({ low: 1.5, high: null }, "×")).toBe(`1.5${T}× or more`);
    expect(words.range({ low: null, high: null }, "×")).toBe("");
    expect(words.range(null, "%")).toBe("");
  });
});

describe("times", () => {
  it("have no more than two parts", () => {
    const spans = [-5, 0, 45_000, 119_000, 720_000, 12_000_000, 10_800_000, 200_000_000];
    expect(spans.map(words.span)).toEqual([
      "0 s",
      "0 s",
      "45 s",
      "119 s",
      "12 min",
      "3 h 20 min",
      "3 h",
      "2 d",
    ]);
  });

  it("are no future where a clock is ahead", () => {
    expect(words.ago(1_000_500, 1_000_000)).toBe("just now");
    expect(words.ago(1_000_000, 1_040_000)).toBe("40 s ago");
    expect(words.ago(null, 1)).toBe("");
  });

  it("name the day where it is another", () => {
    const noon = new Date(2026, 10, 21, 12, 0, 0).getTime();
    expect(words.clock(noon, noon + 1000)).toBe("12:00:00");
    expect(words.clock(noon - 86_400_000, noon)).toBe("20 Nov, 12:00:00");
    expect(words.clock(null, noon)).toBe("–");
  });
});

describe("words", () => {
  it("know the unit of a guardrail", () => {
    const unit = (name: string, interval: { low: number; high: number } | null = null) =>
      words.unit({ name, interval });
    expect([unit("error_rate"), unit("fresh_data"), unit("drops"), unit("sample_ratio")]).toEqual([
      "%",
      "s",
      "×",
      "%",
    ]);
    expect([unit("new_one"), unit("new_one", { low: 0, high: 1 })]).toEqual(["%", "×"]);
    expect(words.called("new_one")).toBe("new one");
  });

  it("say what is waited for", () => {
    expect(words.waiting("bakes for another 960 s")).toBe("bakes for another 16 min");
    expect(words.waiting("3 of 20 users seen")).toBe("waits for 20 users (has 3)");
    expect(words.waiting("waits for approval")).toBe("waits for approval");
  });

  it("are cut between characters", () => {
    expect(words.bytes("aäb", 4)).toBe("aäb");
    expect(words.bytes("aäb", 2)).toBe("a");
    expect(words.bytes("👍👍", 7)).toBe("👍");
  });

  it("make sentences", () => {
    expect([words.sentence("it is so"), words.sentence("So?"), words.sentence(" ")]).toEqual([
      "It is so.",
      "So?",
      "",
    ]);
    expect(words.listed(["a", "b", "c"])).toBe("a, b and c");
  });
});
