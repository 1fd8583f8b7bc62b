// What a gateway says of its rollouts, read so that missing and odd parts are simply not there: a page
// that an operator needs at 3 a.m. draws what it got. Knows no page and no network.

export type Demand = "nothing" | "hold" | "roll_back";
export type Outcome = "passed" | "violated" | "unknown";
export type Status =
  | "pending"
  | "running"
  | "paused"
  | "completed"
  | "rolled_back"
  | "stopped"
  | "failed";
/** From soft to hard. */
export const STOPS = ["freeze", "stop-and-keep", "drain-back", "hard"] as const;
export type Stop = (typeof STOPS)[number];

export interface Counts {
  affected: number;
  total: number;
}

export interface Verdict {
  name: string;
  mode: string;
  outcome: Outcome;
  demand: Demand;
  new: Counts;
  control: Counts;
  estimate: number | null;
  /** Bounds that are not known are null. */
  interval: { low: number | null; high: number | null } | null;
  threshold: number | null;
  logE: number | null;
  logENeeded: number | null;
  summary: string;
}

export interface Step {
  percentage: number;
  bakeSeconds: number;
  minUsers: number;
  minEvents: number;
  approval: boolean;
  validation: boolean;
}

export interface Flag {
  component: string;
  from: string;
  to: string;
  enabled: boolean;
  status: Status;
  percentage: number;
  effective: number;
  epoch: number;
  version: number | null;
  stop: Stop | null;
  reason: string;
  changedBy: string;
  changedAt: number | null;
  unsaved: boolean;
  salt: string;
  algorithm: string;
  conditions: { environment: string[]; userGroups: string[]; allow: string[]; deny: string[] };
  fallback: boolean | null;
  steps: Step[];
  after: string[];
  step: number | null;
  bakedMs: number;
  approved: boolean;
  holds: string[];
  /** `unknown`, `asked`, `passed`, or what differs. */
  validation: { state: string; differs: string };
  coolUntil: number | null;
  /** From where on a delivery is slow. */
  slowAboveMs: number | null;
}

export interface Tally {
  node: string;
  at: number | null;
  websocket: number;
  sse: number;
  plain: number;
  users: number | null;
}

export interface Figures {
  target: number | null;
  assigned: number | null;
  live: number | null;
  users: number | null;
  websocket: number | null;
  sse: number | null;
  plain: number | null;
  behind: number;
  ahead: number;
  pending: number;
  nodes: Tally[];
}

export interface Arm {
  counts: Record<string, number>;
  latency: {
    count: number;
    p50: number | null;
    p95: number | null;
    p99: number | null;
    /** Upper end in milliseconds, and how many; the last end may be none. */
    buckets: [number | null, number][];
  } | null;
}

export interface Measured {
  at: number | null;
  nodes: number | null;
  memory: number | null;
  new: Arm;
  control: Arm;
}

export interface Moment {
  at: number;
  /** Target, assigned, live. */
  figures: (number | null)[];
  verdicts: Record<
    string,
    { estimate: number | null; low: number | null; high: number | null; logE: number | null }
  >;
}

export interface Alert {
  id: string;
  at: number | null;
  urgent: boolean;
  component: string;
  text: string;
  by: string | null;
  acknowledgedAt: number | null;
  /** Webhooks that could not be told. */
  failed: string[];
}

export interface Entry {
  time: number | null;
  component: string;
  action: string;
  by: string;
  reason: string;
  percentage: (number | null)[];
  status: string[];
  version: number | null;
  figures: unknown;
}

export interface Dashboard {
  now: number | null;
  environment: string;
  node: string;
  storeUnreachableMs: number | null;
  /** Who evaluates; null when nobody does, undefined when it is not said. */
  evaluator: string | null | undefined;
  mayOperate: boolean;
  flags: Flag[];
  figures: Figures | null;
  measured: Record<string, Measured>;
  verdicts: Record<string, Verdict[]>;
  series: Record<string, Moment[]>;
  /** Of which entry of the history verdicts and counts are, where nobody judges any more. */
  asOf: Record<string, Entry>;
  alerts: Alert[];
  history: Entry[];
}

type Json = Record<string, unknown>;

const is = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const object = (value: unknown): Json => (is(value) ? value : {});
const number = (value: unknown): number | null =>
  typeof value === "number" && Number.isFinite(value) ? value : null;
/** Milliseconds since 1970; 0 is no time. */
const time = (value: unknown): number | null => number(value) || null;
const count = (value: unknown): number => number(value) ?? 0;
const text = (value: unknown): string =>
  typeof value === "string" ? value : typeof value === "number" ? String(value) : "";
const list = (value: unknown): unknown[] => (Array.isArray(value) ? value : []);
const texts = (value: unknown): string[] => list(value).map(text).filter(Boolean);
const oneOf = <T extends string>(value: unknown, all: readonly T[], other: T): T =>
  all.includes(value as T) ? (value as T) : other;

function record<T>(value: unknown, read: (one: unknown) => T): Record<string, T> {
  const entries = Object.entries(object(value)).filter(([, one]) => one !== null);
  return Object.fromEntries(entries.map(([key, one]) => [key, read(one)]));
}

/** Reads what a gateway said; throws only when it is no object at all. */
export function read(said: unknown): Dashboard {
  if (!is(said)) throw new TypeError("the gateway's answer is no dashboard");
  const evaluator = said.evaluator;
  return lastKnown({
    now: number(said.now),
    environment: text(said.environment),
    node: text(said.node),
    storeUnreachableMs: number(said.storeUnreachableMs),
    evaluator:
      evaluator === undefined
        ? undefined
        : evaluator === null
          ? null
          : text(object(evaluator).node),
    mayOperate: object(said.rights).operate !== false,
    flags: list(said.flags).filter(is).map(flag),
    figures: is(said.figures) ? figures(said.figures) : null,
    measured: record(said.measured, measured),
    verdicts: record(said.verdicts, (one) => list(one).filter(is).map(verdict)),
    series: record(said.series, (one) => list(one).filter(is).map(moment)),
    alerts: list(said.alerts).filter(is).map(alert),
    asOf: {},
    history: list(said.history).filter(is).map(entry),
  });
}

export const ENDS: readonly Status[] = ["rolled_back", "stopped", "failed"];

/** What has ended is judged no more: there the journal keeps what was measured when it ended. */
function lastKnown(said: Dashboard): Dashboard {
  for (const { component, status, epoch } of said.flags) {
    if (!ENDS.includes(status) || said.verdicts[component]?.length || epoch === 0) continue;
    const of = (one: Entry) => one.component === component && is(one.figures);
    const entry = said.history.find(of);
    const figures = object(entry?.figures);
    const verdicts = list(figures.verdicts).filter(is).map(verdict);
    if (!entry || verdicts.length === 0) continue;
    said.verdicts[component] = verdicts;
    said.asOf[component] = entry;
    if (is(figures.measured)) said.measured[component] = measured(figures.measured);
  }
  return said;
}

const STATUSES = [
  "pending",
  "running",
  "paused",
  "completed",
  "rolled_back",
  "stopped",
  "failed",
] as const;

function flag(said: Json): Flag {
  const course = object(said.course);
  const conditions = object(said.conditions);
  const schedule = object(said.schedule);
  const percentage = number(said.rolloutPercentage) ?? count(course.percentage);
  const failed = object(course.validation).failed;
  const stop = said.stop ?? course.stop;
  return {
    component: text(said.component),
    from: text(said.from),
    to: text(said.to),
    enabled: said.enabled !== false,
    status: oneOf(said.status ?? course.status, STATUSES, "pending"),
    percentage,
    effective: number(said.effectivePercentage) ?? percentage,
    epoch: count(said.epoch ?? course.epoch),
    version: number(said.version),
    stop: STOPS.find((one) => one === stop) ?? null,
    reason: text(said.reason ?? course.reason),
    changedBy: text(said.changedBy),
    changedAt: time(said.changedAt),
    unsaved: said.unsaved === true,
    salt: text(said.salt),
    algorithm: text(said.algorithm),
    conditions: {
      environment: texts(conditions.environment),
      userGroups: texts(conditions.userGroups),
      allow: texts(conditions.allow),
      deny: texts(conditions.deny),
    },
    fallback: typeof said.fallbackEnabled === "boolean" ? said.fallbackEnabled : null,
    steps: list(schedule.steps).filter(is).map(step),
    after: texts(schedule.after),
    step: number(course.step),
    bakedMs: count(course.baked),
    approved: course.approved === true,
    holds: texts(course.holds),
    validation: {
      state: failed === undefined ? text(course.validation) || "unknown" : "failed",
      differs: text(failed) || text(object(failed).text),
    },
    coolUntil: time(course.cool_until),
    slowAboveMs: number(object(said.guardrails).slow_above_ms),
  };
}

function step(said: Json): Step {
  return {
    percentage: count(said.percentage),
    bakeSeconds: count(said.bake_seconds),
    minUsers: count(said.min_users),
    minEvents: count(said.min_events),
    approval: said.approval === true,
    validation: said.validation === true,
  };
}

function figures(said: Json): Figures {
  return {
    target: number(said.targetPercentage),
    assigned: number(said.assignedUsersPercentage),
    live: number(said.liveConnectionsPercentage),
    users: number(said.users),
    websocket: number(said.websocket),
    sse: number(said.sse),
    plain: number(said.plain),
    behind: count(said.behind),
    ahead: count(said.ahead),
    pending: count(said.pending),
    nodes: list(said.nodes)
      .filter(is)
      .map((one) => ({
        node: text(one.node) || text(one.id),
        at: time(one.at),
        websocket: count(one.websocket),
        sse: count(one.sse),
        plain: count(one.plain),
        users: number(one.users),
      })),
  };
}

function measured(value: unknown): Measured {
  const said = object(value);
  return {
    at: time(said.at),
    nodes: number(said.nodes),
    memory: number(said.memory),
    new: arm(said.new),
    control: arm(said.control),
  };
}

function arm(value: unknown): Arm {
  const said = object(value);
  const latency = object(said.latency);
  const numbers = Object.entries(said).filter(([, one]) => typeof one === "number");
  const pair = (one: unknown): [number | null, number] => {
    const [end, many] = list(one);
    return [number(end), count(many)];
  };
  return {
    counts: Object.fromEntries(numbers) as Record<string, number>,
    latency: is(said.latency)
      ? {
          count: count(latency.count),
          p50: number(latency.p50),
          p95: number(latency.p95),
          p99: number(latency.p99),
          buckets: list(latency.buckets).map(pair),
        }
      : null,
  };
}

const counts = (value: unknown): Counts => ({
  affected: count(object(value).affected),
  total: count(object(value).total),
});
/** Bounds are called by either of two names. */
const low = (said: Json) => number(said.low ?? said.lower);
const high = (said: Json) => number(said.high ?? said.upper);

function verdict(said: Json): Verdict {
  return {
    name: text(said.name),
    mode: text(said.mode) || "guardrail",
    outcome: oneOf(said.outcome, ["passed", "violated", "unknown"] as const, "unknown"),
    demand: oneOf(said.demand, ["nothing", "hold", "roll_back"] as const, "nothing"),
    new: counts(said.new),
    control: counts(said.control),
    estimate: number(said.estimate),
    interval: is(said.interval) ? { low: low(said.interval), high: high(said.interval) } : null,
    threshold: number(said.threshold),
    logE: number(said.log_e),
    logENeeded: number(said.log_e_needed),
    summary: text(said.summary),
  };
}

function moment(said: Json): Moment {
  return {
    at: count(said.at),
    figures: list(said.figures).map(number),
    verdicts: record(said.verdicts, (one) => {
      const its = object(one);
      const bounds = is(its.interval) ? its.interval : its;
      return {
        estimate: number(its.estimate),
        low: low(bounds),
        high: high(bounds),
        logE: number(its.log_e),
      };
    }),
  };
}

function alert(said: Json): Alert {
  // Who has seen it is said flat or in an object of its own.
  const seen = is(said.acknowledged) ? said.acknowledged : null;
  const by = said.acknowledgedBy ?? (seen ? text(seen.by) : null);
  return {
    id: text(said.id),
    at: time(said.at),
    urgent: said.urgent === true,
    component: text(said.component),
    text: text(said.text),
    by: by === null ? null : text(by),
    acknowledgedAt: time(said.acknowledgedAt ?? seen?.at),
    failed: texts(said.failed),
  };
}

function entry(said: Json): Entry {
  return {
    time: time(said.time),
    component: text(said.component),
    action: text(said.action),
    by: text(said.by),
    reason: text(said.reason),
    percentage: list(said.percentage).map(number),
    status: texts(said.status),
    version: number(said.version),
    figures: said.figures ?? null,
  };
}
