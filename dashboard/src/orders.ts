// What an operator can do to a rollout as it stands, the call that does it, and what its answer means.
// Pure: it makes requests and sends none.
//
// The gateway decides what may become of a rollout. This only hides what it would certainly refuse.
import { type Flag, STOPS, type Stop } from "./model.ts";
import { percent, span, STOP_WORDS } from "./words.ts";

export const VERBS = [
  "start",
  "resume",
  "approve",
  "advance",
  "set",
  "complete",
  "pause",
  "stop",
  "rollback",
] as const;
export type Verb = (typeof VERBS)[number] | "emergency";

export interface Order {
  verb: Verb;
  label: string;
  /** What happens, for the confirmation. */
  effect: string;
  /** Takes users from the new side. */
  grave: boolean;
  /** Ways to stop that can be chosen, the usual one first. */
  modes: Stop[];
  /** A percentage is asked for, and this is the first suggestion. */
  percentage: number | null;
  /** Why it would be refused unless forced. */
  forced: string;
}

const plain = { grave: false, modes: [], percentage: null, forced: "" };

/** What can be done now, in the order of the buttons. */
export function possible(flag: Flag, now: number | null): Order[] {
  const orders: Order[] = [];
  const { status, to, from } = flag;
  const at = percent(flag.effective);
  const going = status === "running" || status === "paused";
  const ended = status === "rolled_back" || status === "stopped" || status === "failed";
  const next = flag.steps.find((step) => step.percentage > flag.effective);
  const then = next ? `${percent(next.percentage)}` : "the end of its schedule";
  if (status === "pending" || ended) {
    const first = flag.steps[0]?.percentage;
    const rest = flag.coolUntil != null && now != null ? flag.coolUntil - now : 0;
    orders.push({
      ...plain,
      verb: "start",
      label: ended ? "Start again" : "Start",
      effect: `${percent(first ?? 1)} of users are moved from ${from} to ${to}${ended ? "; counts begin anew" : ""}.`,
      percentage: first === undefined ? 1 : null,
      forced: rest > 0 ? `It cools down for another ${span(rest)}.` : "",
    });
  }
  if (status === "paused")
    orders.push({
      ...plain,
      verb: "resume",
      label: "Resume",
      effect: `It goes on from ${at} by its schedule.`,
    });
  const asks = flag.step === null ? undefined : flag.steps[flag.step];
  if (going && asks?.approval && !flag.approved) {
    const effect = `You approve of going from ${at} to ${then}. Everything else is still waited for.`;
    orders.push({ ...plain, verb: "approve", label: "Approve", effect });
  }
  if (status === "running" && flag.steps.length > 0 && flag.effective < 100) {
    const effect = `The rest of the bake time at ${at} is skipped; guardrails, users, events and approval are still needed before ${then}.`;
    orders.push({ ...plain, verb: "advance", label: "Advance", effect });
  }
  if (going || status === "completed") {
    const effect = flag.steps.length
      ? `The share of users on ${to} becomes what you say, and the schedule pauses there.`
      : `The share of users on ${to} becomes what you say.`;
    orders.push({
      ...plain,
      verb: "set",
      label: "Set percentage",
      effect,
      percentage: flag.percentage,
    });
  }
  if (going && flag.effective >= 100) {
    const effect = `${to} is the side for everybody, for good: the rollout ends and nothing watches it any more.`;
    orders.push({ ...plain, verb: "complete", label: "Complete", effect });
  }
  if (status === "running") {
    const effect = `It stays at ${at} until somebody resumes it; guardrails can still turn it back.`;
    orders.push({ ...plain, verb: "pause", label: "Pause", effect });
  }
  if (going || status === "completed")
    orders.push({
      ...plain,
      verb: "stop",
      label: "Freeze",
      effect: `It ends at ${at}: ${STOP_WORDS.freeze}.`,
    });
  // What ended softly can still be ended harder.
  const harder = STOPS.slice(1).filter(
    (mode) => !ended || STOPS.indexOf(mode) > STOPS.indexOf(flag.stop ?? "hard"),
  );
  if (status !== "pending" && harder.length > 0) {
    orders.push({
      ...plain,
      verb: "rollback",
      label: status === "rolled_back" || status === "failed" ? "Roll back harder" : "Roll back",
      effect: `Nobody belongs on ${to} any more; ${at} of users go back to ${from}.`,
      grave: true,
      modes: [...harder].sort((a, b) => Number(b === "drain-back") - Number(a === "drain-back")),
    });
  }
  return orders;
}

export function emergency(flags: Flag[]): Order {
  const names = flags.map((flag) => flag.component).join(", ");
  return {
    ...plain,
    verb: "emergency",
    label: "Emergency stop",
    effect: `Every rollout is switched off (${names || "there is none"}) and everybody goes back to the old side.`,
    grave: true,
    modes: ["drain-back", "hard", "stop-and-keep"],
  };
}

export interface Said {
  reason: string;
  mode: Stop | null;
  percentage: number | null;
  force: boolean;
}

export interface Call {
  method: "POST" | "PUT";
  path: string;
  body: Record<string, unknown>;
}

/** The call that does it. `version` is the one that the operator saw. */
export function call(order: Order, component: string, version: number | null, said: Said): Call {
  const body: Record<string, unknown> = { reason: said.reason };
  if (order.verb === "emergency") {
    if (said.mode && said.mode !== "drain-back") body.mode = said.mode;
    return { method: "POST", path: "/api/migration/emergency-stop", body };
  }
  if (version !== null) body.version = version;
  if (order.verb === "set") {
    body.rolloutPercentage = said.percentage;
    const path = `/api/migration/feature-flags/${encodeURIComponent(component)}`;
    return { method: "PUT", path, body };
  }
  if (order.verb === "start" && order.percentage !== null) body.percentage = said.percentage;
  if (order.verb === "start" && said.force) body.force = true;
  if (order.verb === "rollback") body.mode = said.mode ?? order.modes[0];
  if (order.verb === "stop") body.mode = "freeze";
  const path = `/api/migration/${order.verb}/${encodeURIComponent(component)}`;
  return { method: "POST", path, body };
}

/** What became of a call. */
export type Result =
  | { kind: "done" }
  /** It holds on this node only. */
  | { kind: "here-only"; message: string }
  /** Somebody else was faster. */
  | { kind: "conflict"; message: string }
  | { kind: "unauthorised"; message: string }
  | { kind: "forbidden"; message: string }
  | { kind: "refused"; message: string };

export function result(status: number, body: unknown): Result {
  const said = (typeof body === "object" && body !== null ? body : {}) as Record<string, unknown>;
  const error = (typeof said.error === "object" && said.error !== null ? said.error : {}) as Record<
    string,
    unknown
  >;
  const text = (value: unknown) => (typeof value === "string" ? value : "");
  const message = text(error.message) || text(said.message);
  if (status === 401) return { kind: "unauthorised", message: message || "A token is needed." };
  if (status === 403)
    return { kind: "forbidden", message: message || "The token may not do this." };
  if (status === 409 && (error.code === "version_conflict" || error.code === undefined))
    return { kind: "conflict", message };
  if (status >= 300 || status < 200)
    return { kind: "refused", message: message || `The gateway answered ${status} and no reason.` };
  if (status === 202 || said.saved === false) {
    return {
      kind: "here-only",
      message: message || "Stopped on this node only; the store is away.",
    };
  }
  return { kind: "done" };
}

/** What somebody changed between two looks, in words. */
export function differences(before: Flag, after: Flag): string[] {
  const found: string[] = [];
  const say = (what: string, a: string | number | null, b: string | number | null) => {
    if (a !== b)
      found.push(
        `${what}: ${a === null || a === "" ? "none" : a} → ${b === null || b === "" ? "none" : b}`,
      );
  };
  const words = (status: string) => status.replace("_", " ");
  say("status", words(before.status), words(after.status));
  say("percentage", percent(before.effective), percent(after.effective));
  say("switched on", before.enabled ? "yes" : "no", after.enabled ? "yes" : "no");
  say("approved", before.approved ? "yes" : "no", after.approved ? "yes" : "no");
  say("stop", before.stop, after.stop);
  say("epoch", before.epoch, after.epoch);
  say("reason", before.reason, after.reason);
  const settings = (flag: Flag) =>
    JSON.stringify([flag.conditions, flag.steps, flag.salt, flag.algorithm, flag.fallback]);
  if (settings(before) !== settings(after))
    found.push("its conditions, schedule or other settings");
  return found;
}
