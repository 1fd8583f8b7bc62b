import { describe, expect, it } from "vitest";
import { type Flag, read } from "../src/model.ts";
import { call, differences, emergency, possible, result } from "../src/orders.ts";
import { STATES } from "./states.mjs";

const now = 1_795_260_925_072;
const flag = (more: object = {}, course: object = {}): Flag => {
  const raw = STATES.healthy?.(now);
  const [its] = raw.flags;
  const found = read({ flags: [{ ...its, ...more, course: { ...its.course, ...course } }] })
    .flags[0];
  if (!found) throw new Error("no flag");
  return found;
};
const verbs = (its: Flag) => possible(its, now).map((order) => order.verb);
const order = (its: Flag, verb: string) => {
  const found = possible(its, now).find((one) => one.verb === verb);
  if (!found) throw new Error(`no ${verb}`);
  return found;
};
const said = { reason: "why not", mode: null, percentage: null, force: false };

describe("what can be done", () => {
  it.each([
    ["pending", {}, ["start"]],
    ["running", {}, ["advance", "set", "pause", "stop", "rollback"]],
    ["paused", {}, ["resume", "set", "stop", "rollback"]],
    ["completed", { effectivePercentage: 100 }, ["set", "stop", "rollback"]],
    ["running", { effectivePercentage: 100 }, ["set", "complete", "pause", "stop", "rollback"]],
    ["rolled_back", { stop: "drain-back" }, ["start", "rollback"]],
    ["failed", { stop: "hard" }, ["start"]],
    ["stopped", { stop: "freeze" }, ["start", "rollback"]],
  ])("%s %j", (status, more, expected) => {
    expect(verbs(flag({ status, ...more }))).toEqual(expected);
  });

  it("can be approved where a step asks for it, once", () => {
    expect(verbs(flag({}, { step: 3 }))).toContain("approve");
    expect(verbs(flag({}, { step: 3, approved: true }))).not.toContain("approve");
  });

  it("goes back no softer than before, and by draining first", () => {
    expect(order(flag(), "rollback").modes).toEqual(["drain-back", "stop-and-keep", "hard"]);
    expect(order(flag({ status: "rolled_back", stop: "drain-back" }), "rollback").modes).toEqual([
      "hard",
    ]);
  });

  it("starts against a cool-down only if forced", () => {
    const cooling = flag({ status: "rolled_back" }, { cool_until: now + 60_000 });
    expect(order(cooling, "start").forced).toMatch(/60 s/);
    expect(order(flag({ status: "rolled_back" }), "start").forced).toBe("");
  });
});

describe("calls", () => {
  it("carry the version that was seen, and the reason", () => {
    expect(call(order(flag(), "pause"), "websocket-transport", 17, said)).toEqual({
      method: "POST",
      path: "/api/migration/pause/websocket-transport",
      body: { version: 17, reason: "why not" },
    });
    const back = call(order(flag(), "rollback"), "a b", 17, { ...said, mode: "hard" });
    expect(back.path).toBe("/api/migration/rollback/a%20b");
    expect(back.body).toEqual({ version: 17, reason: "why not", mode: "hard" });
    expect(call(order(flag(), "stop"), "c", 17, said).body.mode).toBe("freeze");
    const set = call(order(flag(), "set"), "c", 17, { ...said, percentage: 5 });
    expect([set.method, set.path]).toEqual(["PUT", "/api/migration/feature-flags/c"]);
    expect(set.body).toEqual({ version: 17, reason: "why not", rolloutPercentage: 5 });
  });

  it("name a percentage at the start only where there is no schedule", () => {
    const byHand = flag({ status: "pending", schedule: { steps: [] } });
    const start = (its: Flag) =>
      call(order(its, "start"), "c", 1, { ...said, percentage: 2, force: true });
    expect(start(byHand).body).toEqual({
      version: 1,
      reason: "why not",
      percentage: 2,
      force: true,
    });
    expect(start(flag({ status: "pending" })).body.percentage).toBeUndefined();
  });

  it("stop everything without a version", () => {
    const all = call(emergency([flag()]), "", null, { ...said, mode: "drain-back" });
    expect(all).toEqual({
      method: "POST",
      path: "/api/migration/emergency-stop",
      body: { reason: "why not" },
    });
  });
});

describe("answers", () => {
  const error = (code: string) => ({ error: { code, message: "m" } });
  it.each([
    [200, { saved: true }, "done"],
    [202, { saved: false, message: "m" }, "here-only"],
    [401, error("unauthorised"), "unauthorised"],
    [403, error("forbidden"), "forbidden"],
    [409, error("version_conflict"), "conflict"],
    [409, error("rollout_refused"), "refused"],
    [503, null, "refused"],
  ])("%i %j", (status, body, kind) => {
    expect(result(status, body).kind).toBe(kind);
  });

  it("show what changed meanwhile", () => {
    const after = flag({
      status: "paused",
      version: 18,
      reason: "I look at it",
      effectivePercentage: 5,
    });
    expect(differences(flag(), after).map((one) => one.replaceAll("\u202f", " "))).toEqual([
      "status: running → paused",
      "percentage: 25 % → 5 %",
      "reason: second try after the proxy was fixed → I look at it",
    ]);
    expect(differences(flag(), flag())).toEqual([]);
  });
});
