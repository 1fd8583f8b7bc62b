// What a gateway says in the states that an operator may meet: the mock gateway and the tests say it too.

const MINUTE = 60_000;
export const COMPONENT = "websocket-transport";

/** The same numbers every time: screenshots are compared by people. */
function random(seed) {
  let state = seed;
  return () => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648;
    return state / 2_147_483_648;
  };
}

const verdict = (name, mode, more) => ({
  name,
  mode,
  outcome: "passed",
  demand: "nothing",
  new: { affected: 0, total: 500 },
  control: { affected: 0, total: 1500 },
  estimate: null,
  interval: null,
  threshold: 1.1,
  log_e: null,
  log_e_needed: null,
  summary: `${name}: no sign of harm`,
  ...more,
});

const wire = (name, mode, [some, of], [others, all], threshold, more = {}) =>
  verdict(name, mode, {
    new: { affected: some, total: of },
    control: { affected: others, total: all },
    estimate: of ? (100 * some) / of : null,
    threshold,
    summary: `failures in the new arm: ${some} of ${of} (${((100 * some) / of).toFixed(2)} %), limit ${threshold} %`,
    ...more,
  });

const compared = (name, mode, [some, others], [estimate, lower, upper], log_e, more = {}) =>
  verdict(name, mode, {
    new: { affected: some, total: 500 },
    control: { affected: others, total: 1500 },
    estimate,
    interval: { lower, upper },
    log_e,
    log_e_needed: 4.6,
    summary: `${name}: ${some} of 500 (${((100 * some) / 500).toFixed(2)} %) users of the new arm against ${others} of 1500, no sign of harm`,
    ...more,
  });

export const BROKEN_SENTENCE =
  "interruptions affect users of the new arm 3.2 times as often as the others (at least 1.62 times; " +
  "1.10 is tolerated): 41 of 500 (8.20 %) against 38 of 1500 (2.53 %)";

function verdicts() {
  return [
    verdict("fresh_data", "signal", {
      estimate: 1,
      threshold: 30,
      new: { affected: 0, total: 0 },
      control: { affected: 0, total: 0 },
      summary: "the last report is 1 s old",
    }),
    wire("error_rate", "guardrail", [3, 2140], [4, 2188], 1),
    wire("latency", "guardrail", [12, 1200], [31, 1310], 5, {
      summary: "deliveries above 500 ms in the new arm: 12 of 1200 (1.00 %), limit 5 %",
    }),
    wire("drop_rate", "guardrail", [1, 48_200], [0, 47_900], 1, {
      summary: "lost events in the new arm: 1 of 48200 (0.00 %), limit 1 %",
    }),
    wire("fallbacks", "signal", [4, 520], [0, 0], 5, {
      summary: "fallbacks to the old side in the new arm: 4 of 520 (0.77 %), limit 5 %",
    }),
    verdict("node_memory", "guardrail", {
      estimate: 41,
      threshold: 90,
      new: { affected: 0, total: 0 },
      control: { affected: 0, total: 0 },
      summary: "the fullest node uses 41 % of its memory, limit 90 %",
    }),
    compared("connect_failures", "guardrail", [3, 8], [1.13, 0.21, 4.4], -0.9),
    compared("interruptions", "guardrail", [9, 26], [1.04, 0.4, 2.3], -0.6),
    compared("drops", "guardrail", [1, 0], [null, 0.05, null], 0.2),
    compared("errors", "guardrail", [2, 7], [0.86, 0.1, 3.9], -0.8),
    verdict("slow", "guardrail", {
      new: { affected: 12, total: 1200 },
      control: { affected: 31, total: 1310 },
      estimate: 0.42,
      interval: { lower: 0.1, upper: 0.9 },
      summary:
        "deliveries above 500 ms: 12 of 1200 (1.00 %) in the new arm against 31 of 1310 (2.37 %), no sign of harm",
    }),
    compared("resume_failures", "signal", [0, 1], [0, null, 9], -0.1),
    compared("resets", "signal", [1, 2], [1.5, 0.1, 8.8], -0.2),
    verdict("flaps", "signal", {
      outcome: "unknown",
      log_e: 0,
      log_e_needed: 4.6,
      summary: "presence flaps: none in either arm yet",
    }),
    verdict("memory", "signal", {
      new: { affected: 0, total: 0 },
      control: { affected: 0, total: 0 },
      estimate: 1.08,
      interval: { lower: 0.95, upper: 1.22 },
      threshold: 1.5,
      summary: "a session of the new arm takes 41.2 KiB against 38.1 KiB, no sign of harm",
    }),
    verdict("sample_ratio", "signal", {
      new: { affected: 500, total: 1003 },
      control: { affected: 503, total: 1003 },
      estimate: 49.85,
      threshold: 50,
      log_e: -2.1,
      log_e_needed: 6.9,
      summary: "the new arm has 500 of 1003 (49.85 %) of the users compared, planned are 50.0 %",
    }),
  ];
}

function latency(middle, wide, count, seed) {
  const next = random(seed);
  const buckets = [];
  const ratio = 60_000 ** (1 / 98);
  let all = 0;
  for (let bin = 0; bin <= 98; bin += 1) {
    const end = ratio ** bin;
    const place = Math.log(end / middle) / wide;
    const many = Math.round(count * 0.06 * Math.exp(-place * place) * (0.8 + 0.4 * next()));
    all += many;
    if (many > 0) buckets.push([end, many]);
  }
  const quantile = (share) => {
    let sum = 0;
    for (const [end, many] of buckets) {
      sum += many;
      if (sum >= share * all) return end;
    }
    return null;
  };
  return { count: all, p50: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99), buckets };
}

const arm = (its) => ({
  users: 500,
  connects: 620,
  connectFailures: 3,
  interruptions: 9,
  resumes: 40,
  resets: 1,
  requests: 900,
  errors: 2,
  fallbacks: 4,
  delivered: 48_200,
  dropped: 1,
  latency: its,
});

/** The last 30 minutes of `verdicts`, ending in them; `turn` bends one of them. */
function series(now, verdicts, shares, turn = () => null) {
  const moments = [];
  const next = random(7);
  for (let back = 359; back >= 0; back -= 1) {
    const part = 1 - back / 359;
    const told = {};
    for (const one of verdicts) {
      const [low, high] = [one.interval?.lower ?? null, one.interval?.upper ?? null];
      const wide = 1 + 3 * (1 - part);
      const noise = 1 + 0.12 * (1 - part) * (next() - 0.5) * 4;
      told[one.name] = turn(one, part) ?? {
        estimate: one.estimate === null ? null : one.estimate * noise,
        low: low === null ? null : low / wide,
        high: high === null ? null : high * wide,
        log_e: one.log_e === null ? null : one.log_e * part,
      };
    }
    moments.push({ at: now - back * 5_000, figures: shares(part), verdicts: told });
  }
  return moments;
}

const steps = [1, 5, 25, 50, 100].map((percentage, index) => ({
  percentage,
  bake_seconds: [600, 600, 1800, 3600, 86_400][index],
  min_users: [20, 100, 500, 1000, 2000][index],
  min_events: [200, 1000, 5000, 10_000, 20_000][index],
  approval: percentage === 50,
  validation: true,
}));

function flag(now, more = {}) {
  const { course, ...rest } = more;
  return {
    component: COMPONENT,
    from: "sse",
    to: "websocket",
    enabled: true,
    status: "running",
    rolloutPercentage: 25,
    effectivePercentage: 25,
    epoch: 2,
    version: 17,
    stop: null,
    reason: "second try after the proxy was fixed",
    changedBy: "gateway",
    changedAt: now - 14 * MINUTE,
    unsaved: false,
    salt: "websocket-transport.2",
    algorithm: "crossfade-v1",
    conditions: {
      environment: ["production"],
      userGroups: [],
      allow: ["anna", "bert"],
      deny: ["boss"],
    },
    fallbackEnabled: true,
    schedule: { steps, cool_down_seconds: 3600, keep_salt: false, after: [] },
    guardrails: { alpha: 0.05, margin: 0.1, slow_above_ms: 500 },
    ...rest,
    course: {
      stage: 5,
      step: 2,
      baked: 14 * MINUTE,
      approved: false,
      holds: ["bakes for another 960 s"],
      validation: "unknown",
      cool_until: null,
      ...course,
    },
  };
}

const entry = (time, action, by, reason, percentage, status, version, figures) => ({
  time,
  component: COMPONENT,
  action,
  by,
  reason,
  percentage,
  status,
  version,
  ...(figures ? { figures } : {}),
});

function history(now) {
  return [
    entry(
      now - 14 * MINUTE,
      "look",
      "gateway",
      "goes from 5 % to 25 %",
      [5, 25],
      ["running", "running"],
      17,
    ),
    entry(
      now - 24 * MINUTE,
      "look",
      "gateway",
      "goes from 1 % to 5 %",
      [1, 5],
      ["running", "running"],
      15,
    ),
    entry(
      now - 34 * MINUTE,
      "start",
      "key ops",
      "second try after the proxy was fixed",
      [0, 1],
      ["rolled_back", "running"],
      13,
    ),
    entry(
      now - 26 * 60 * MINUTE,
      "rollback",
      "gateway",
      "failures in the new arm: 31 of 540 (5.74 %), above 1 %; control arm: 2 of 560 (0.36 %)",
      [5, 0],
      ["running", "rolled_back"],
      9,
      {
        verdicts: [
          {
            name: "error_rate",
            summary:
              "failures in the new arm: 31 of 540 (5.74 %), above 1 %; control arm: 2 of 560 (0.36 %)",
          },
        ],
      },
    ),
  ];
}

function healthy(now) {
  const judged = verdicts();
  return {
    now,
    environment: "production",
    node: "node-1a2b",
    storeUnreachableMs: null,
    evaluator: { node: "node-9f0e" },
    rights: { operate: true },
    flags: [flag(now)],
    figures: {
      targetPercentage: 25,
      assignedUsersPercentage: 24.7,
      liveConnectionsPercentage: 24.1,
      users: 2000,
      websocket: 482,
      sse: 1518,
      plain: 3,
      behind: 12,
      ahead: 0,
      pending: 0,
      nodes: [
        {
          id: "a",
          node: "node-1a2b",
          at: now - 400,
          websocket: 240,
          sse: 760,
          plain: 1,
          users: 1000,
        },
        {
          id: "b",
          node: "node-9f0e",
          at: now - 700,
          websocket: 242,
          sse: 758,
          plain: 2,
          users: 1000,
        },
      ],
    },
    measured: {
      [COMPONENT]: {
        at: now - 1_200,
        nodes: 2,
        memory: 0.41,
        new: arm(latency(14, 0.8, 1200, 3)),
        control: arm(latency(38, 1, 1310, 4)),
      },
    },
    verdicts: { [COMPONENT]: judged },
    series: {
      [COMPONENT]: series(now, judged, (part) =>
        part < 0.2
          ? [1, 1, 1 - part]
          : part < 0.53
            ? [5, 4.9, Math.min(4.8, 30 * (part - 0.2))]
            : [25, 24.7, Math.min(24.1, 5 + 300 * (part - 0.53))],
      ),
    },
    alerts: [
      {
        id: "a1",
        at: now - 26 * 60 * MINUTE,
        urgent: true,
        component: COMPONENT,
        text: "rolled back from 5 %: failures in the new arm",
        acknowledgedBy: "key ops",
        acknowledgedAt: now - 25 * 60 * MINUTE,
      },
    ],
    history: history(now),
  };
}

function judgedAs(said, name, more) {
  const all = said.verdicts[COMPONENT];
  all[all.findIndex((one) => one.name === name)] = {
    ...all.find((one) => one.name === name),
    ...more,
  };
}

function holding(now) {
  const said = healthy(now);
  const sentence =
    "fallbacks to the old side in the new arm: 46 of 520 (8.85 %), above 5 %; control arm: 0 of 0 (0.00 %)";
  judgedAs(said, "fallbacks", {
    outcome: "violated",
    demand: "hold",
    new: { affected: 46, total: 520 },
    estimate: 8.85,
    summary: sentence,
  });
  said.flags[0] = flag(now, { course: { holds: [sentence, "bakes for another 960 s"] } });
  said.alerts.unshift({
    id: "a2",
    at: now - 3 * MINUTE,
    urgent: true,
    component: COMPONENT,
    text: `holds at 25 %: ${sentence}`,
    acknowledgedBy: null,
    acknowledgedAt: null,
  });
  const judged = said.verdicts[COMPONENT];
  said.series[COMPONENT] = series(
    now,
    judged,
    () => [25, 24.7, 22],
    (one, part) =>
      one.name === "fallbacks"
        ? {
            estimate: part < 0.7 ? 0.8 : 0.8 + (part - 0.7) * 27,
            low: null,
            high: null,
            log_e: null,
          }
        : null,
  );
  return said;
}

function brokenVerdict(said) {
  judgedAs(said, "interruptions", {
    outcome: "violated",
    demand: "roll_back",
    new: { affected: 41, total: 500 },
    control: { affected: 38, total: 1500 },
    estimate: 3.24,
    interval: { lower: 1.62, upper: 6.1 },
    log_e: 6.1,
    summary: BROKEN_SENTENCE,
  });
}

/** The moment between finding and doing. */
function broken(now) {
  const said = healthy(now);
  brokenVerdict(said);
  said.series[COMPONENT] = bent(now, said.verdicts[COMPONENT], () => [25, 24.7, 24.1]);
  return said;
}

function bent(now, judged, shares) {
  return series(now, judged, shares, (one, part) => {
    if (one.name !== "interruptions") return null;
    const ill = Math.max(0, part - 0.6) / 0.4;
    return {
      estimate: 1 + 2.24 * ill,
      low: 0.35 + 1.27 * ill,
      high: 3.2 + 2.9 * ill,
      log_e: -0.6 + 6.7 * ill,
    };
  });
}

function rolledBack(now) {
  const said = healthy(now);
  brokenVerdict(said);
  said.flags[0] = flag(now, {
    status: "rolled_back",
    rolloutPercentage: 0,
    effectivePercentage: 0,
    version: 18,
    stop: "drain-back",
    reason: BROKEN_SENTENCE,
    changedAt: now - 40_000,
    course: { stage: 6, step: null, baked: 0, holds: [], cool_until: now + 59 * MINUTE },
  });
  Object.assign(said.figures, {
    targetPercentage: 0,
    assignedUsersPercentage: 0,
    liveConnectionsPercentage: 4.4,
    websocket: 88,
    sse: 1912,
    behind: 0,
    ahead: 88,
  });
  Object.assign(said.figures.nodes[0], { websocket: 45, sse: 955 });
  Object.assign(said.figures.nodes[1], { websocket: 43, sse: 957 });
  said.series[COMPONENT] = bent(now, said.verdicts[COMPONENT], (part) =>
    part < 0.978 ? [25, 24.7, 24.1] : [0, 0, 24.1 - 900 * (part - 0.978)],
  );
  said.alerts.unshift({
    id: "a3",
    at: now - 40_000,
    urgent: true,
    component: COMPONENT,
    text: `rolled back from 25 %: ${BROKEN_SENTENCE}`,
    acknowledgedBy: null,
    acknowledgedAt: null,
  });
  said.history.unshift(
    entry(
      now - 40_000,
      "rollback",
      "gateway",
      BROKEN_SENTENCE,
      [25, 0],
      ["running", "rolled_back"],
      18,
      { verdicts: said.verdicts[COMPONENT].filter((one) => one.name === "interruptions") },
    ),
  );
  return said;
}

function stopped(now) {
  const said = healthy(now);
  const reason = "the database behind both sides is down, taking load off";
  said.flags[0] = flag(now, {
    status: "failed",
    enabled: false,
    rolloutPercentage: 0,
    effectivePercentage: 0,
    version: 19,
    stop: "hard",
    reason,
    changedBy: "user maria",
    changedAt: now - 130_000,
    course: { step: null, baked: 0, holds: [], cool_until: now + 58 * MINUTE },
  });
  Object.assign(said.figures, {
    targetPercentage: 0,
    assignedUsersPercentage: 0,
    liveConnectionsPercentage: 0,
    websocket: 0,
    sse: 2000,
    behind: 0,
    ahead: 0,
  });
  for (const node of said.figures.nodes) Object.assign(node, { websocket: 0, sse: 1000 });
  said.alerts.unshift({
    id: "a4",
    at: now - 130_000,
    urgent: true,
    component: COMPONENT,
    text: `emergency stop from 25 %: ${reason}`,
    acknowledgedBy: null,
    acknowledgedAt: null,
  });
  said.history.unshift(
    entry(
      now - 130_000,
      "emergency-stop",
      "user maria",
      reason,
      [25, 0],
      ["running", "failed"],
      19,
    ),
  );
  return said;
}

const cutOff = (now) => ({ ...healthy(now), storeUnreachableMs: 12_300, evaluator: null });
const noRights = (now) => ({ ...healthy(now), rights: { operate: false } });
const empty = (now) => ({
  now,
  environment: "development",
  node: "node-1a2b",
  storeUnreachableMs: null,
  evaluator: null,
  rights: { operate: true },
  flags: [],
  figures: {
    targetPercentage: 0,
    assignedUsersPercentage: 0,
    liveConnectionsPercentage: 0,
    users: 0,
    websocket: 0,
    sse: 0,
    plain: 0,
    behind: 0,
    ahead: 0,
    pending: 0,
    nodes: [],
  },
  measured: {},
  verdicts: {},
  series: {},
  alerts: [],
  history: [],
});

/** A rollout that nobody has begun, beside one that is paused; much is missing. */
function two(now) {
  const said = healthy(now);
  const bare = { course: { step: null, baked: 0, holds: [] } };
  const pending = flag(now, {
    component: "postgres-broker",
    from: "redis",
    to: "postgres",
    status: "pending",
    rolloutPercentage: 0,
    effectivePercentage: 0,
    version: 1,
    reason: "",
    changedBy: "",
    changedAt: 0,
    conditions: {},
    ...bare,
  });
  pending.schedule = { steps: [], after: [COMPONENT] };
  said.flags = [
    flag(now, {
      status: "paused",
      version: 21,
      reason: "release freeze until Monday",
      changedBy: "key ops",
    }),
    pending,
  ];
  return said;
}

/** Waits for a person. */
function approval(now) {
  const said = healthy(now);
  said.flags[0] = flag(now, {
    rolloutPercentage: 50,
    effectivePercentage: 50,
    course: { step: 3, baked: 3600_000, holds: ["waits for approval"], validation: "passed" },
  });
  Object.assign(said.figures, {
    targetPercentage: 50,
    assignedUsersPercentage: 49.8,
    liveConnectionsPercentage: 49.6,
    websocket: 992,
    sse: 1008,
    behind: 0,
  });
  return said;
}

export const STATES = {
  healthy,
  holding,
  broken,
  "rolled-back": rolledBack,
  stopped,
  "cut-off": cutOff,
  "no-rights": noRights,
  empty,
  two,
  approval,
};
