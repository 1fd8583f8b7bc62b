import { describe, expect, it } from "vitest";
import { judge } from "../src/judgement.ts";
import { read } from "../src/model.ts";
import { BROKEN_SENTENCE, COMPONENT, STATES } from "./states.mjs";

const now = 1_795_260_925_072;
const said = (state: string) => STATES[state]?.(now);
const first = (raw: unknown) => {
  const [found] = judge(read(raw));
  if (!found) throw new Error("nothing was judged");
  return found;
};

describe("whether to worry", () => {
  it.each([
    ["healthy", "well", "All is well", /24\.1.% of connections.*15 guardrails kept, 1 too early/],
    ["holding", "worry", "Holding", /46 of 520 \(8\.85 %\), above 5 %/],
    ["broken", "alarm", "Broken", /3\.2 times as often.*41 of 500/],
    [
      "rolled-back",
      "alarm",
      "Rolled back",
      /by the gateway, 40 s ago, because interruptions affect/,
    ],
    ["stopped", "alarm", "Emergency stop", /by user maria.*database behind both sides/],
    ["cut-off", "worry", "Cut off", /cannot reach the store since 12 s/],
    ["no-rights", "well", "All is well", /./],
    ["empty", "well", "All is well", /There is no rollout/],
    ["two", "note", "Paused", /by key ops: release freeze/],
    ["approval", "note", "Your turn", /50.%/],
  ])("%s", (state, level, word, why) => {
    const found = first(said(state));
    expect(found).toMatchObject({ level, word });
    expect(found.why).toMatch(why);
  });

  it("says what follows", () => {
    expect(first(said("rolled-back")).next).toMatch(
      /88 connections are still to come back to sse.*59 min/,
    );
    expect(first(said("broken")).next).toMatch(/rolls it back by itself/);
    const alone = { ...said("broken"), evaluator: null };
    expect(first(alone).next).toMatch(/roll it back\.$/);
    expect(judge(read(alone)).map((one) => one.word)).toEqual(["Broken", "Nobody watches"]);
  });

  it("calms down after the cool-down once somebody has seen it", () => {
    const later = said("rolled-back");
    later.flags[0].course.cool_until = now - 1;
    expect(first(later).level).toBe("alarm");
    for (const alert of later.alerts) alert.acknowledgedBy = "key ops";
    expect(first(later).level).toBe("alarm");
    later.flags[0].changedAt = now - 600_001;
    expect(first(later).level).toBe("note");
  });

  it("worries about what nobody has acknowledged, once", () => {
    const raw = said("healthy");
    raw.alerts.push({
      id: "x",
      at: now - 5_000,
      urgent: true,
      component: COMPONENT,
      text: "webhook failed",
    });
    expect(first(raw)).toMatchObject({ level: "worry", word: "Alert", why: "Webhook failed." });
    expect(judge(read(said("rolled-back"))).map((one) => one.word)).toEqual(["Rolled back"]);
  });

  it("knows the gateway by its node's name too", () => {
    const raw = said("rolled-back");
    raw.flags[0].changedBy = "gateway node-1a2b";
    expect(first(raw)).toMatchObject({
      level: "alarm",
      why: expect.stringMatching(/^by gateway node-1a2b, 40 s/),
    });
    raw.flags[0].changedBy = "key ops";
    expect(first(raw).level).toBe("worry");
  });

  it("tells of a stop that could not be saved and of sides that differ", () => {
    const raw = said("healthy");
    raw.flags[0].unsaved = true;
    raw.flags[0].course.validation = { failed: "3 events are missing" };
    expect(judge(read(raw)).map((one) => one.word)).toEqual(["Holding", "Not saved"]);
    expect(first(raw).why).toMatch(/3 events are missing/);
  });
});

describe("reading", () => {
  it("bears anything missing, null or odd", () => {
    const raw = said("rolled-back");
    expect(read({}).flags).toEqual([]);
    expect(() =>
      judge(read({ flags: [{}], alerts: [{}], history: [{}], figures: {} })),
    ).not.toThrow();
    for (const bad of [null, 7, "x", [], {}, [null]]) {
      for (const key of Object.keys(raw))
        expect(() => judge(read({ ...raw, [key]: bad }))).not.toThrow();
      for (const key of Object.keys(raw.flags[0])) {
        const flags = [{ ...raw.flags[0], [key]: bad }];
        expect(() => judge(read({ ...raw, flags }))).not.toThrow();
      }
    }
    expect(() => read(null)).toThrow("no dashboard");
  });

  it("takes bounds by either name", () => {
    const interval = (its: unknown) =>
      read({ verdicts: { a: [{ name: "drops", interval: its }] } }).verdicts.a?.[0]?.interval;
    expect(interval({ low: 1, high: 2 })).toEqual(interval({ lower: 1, upper: 2 }));
    expect(interval({ lower: null, upper: 2 })).toEqual({ low: null, high: 2 });
    expect(interval(null)).toBeNull();
  });

  it("keeps who evaluates apart from nobody and from not knowing", () => {
    const of = (evaluator: unknown) => read({ evaluator }).evaluator;
    expect([of({ node: "n" }), of(null), of(undefined)]).toEqual(["n", null, undefined]);
  });

  it("takes what was judged at an end from the journal when nobody judges any more", () => {
    const raw = said("rolled-back");
    const { verdicts, measured } = raw;
    const figures = { verdicts: verdicts[COMPONENT], measured: measured[COMPONENT] };
    const bare = { ...raw, verdicts: {}, measured: {}, history: [{ ...raw.history[0], figures }] };
    expect(read(bare).verdicts).toEqual(read(raw).verdicts);
    expect(read(bare).measured).toEqual(read(raw).measured);
    expect(read(bare).asOf[COMPONENT]?.action).toBe("rollback");
    const going = { ...said("healthy"), verdicts: {}, history: bare.history };
    expect(read(going).verdicts).toEqual({});
  });

  it("takes an acknowledgement flat or as an object", () => {
    const by = (its: object) => {
      const one = read({ alerts: [{ id: "a", ...its }] }).alerts[0];
      return [one?.by, one?.acknowledgedAt];
    };
    expect(by({ acknowledgedBy: "key ops", acknowledgedAt: 5 })).toEqual(["key ops", 5]);
    expect(by({ acknowledged: { by: "key ops", at: 5 } })).toEqual(["key ops", 5]);
    expect([by({}), by({ acknowledgedBy: null, acknowledged: null })]).toEqual([
      [null, null],
      [null, null],
    ]);
  });

  it("keeps the sentence of what broke", () => {
    expect(read(said("rolled-back")).flags[0]?.reason).toBe(BROKEN_SENTENCE);
  });
});
