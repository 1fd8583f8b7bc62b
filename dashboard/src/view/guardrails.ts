// Each guardrail: both arms, the estimate with its interval and its limit, now and over time.
import { type Child, h } from "../dom.ts";
import type { Moment, Verdict } from "../model.ts";
import { called, counted, many, measure, percent, range, share, short, unit } from "../words.ts";

const OUTCOMES = {
  passed: ["✓", "passed"],
  violated: ["✕", "violated"],
  unknown: ["…", "too early"],
} as const;

const MODES: Record<string, string> = {
  guardrail: "rolls back if broken",
  signal: "holds if broken",
  dry_run: "only tells",
};

/** The worst first, and among equals as the gateway has them. */
export function ordered(verdicts: Verdict[]): Verdict[] {
  const weight = (one: Verdict) =>
    one.outcome === "violated"
      ? one.demand === "roll_back"
        ? 0
        : one.demand === "hold"
          ? 1
          : 2
      : 3;
  return [...verdicts].sort((a, b) => weight(a) - weight(b));
}

/** How near a guardrail is to being broken; 1 is there. */
function nearness(one: Verdict): number {
  if (one.outcome === "violated")
    return 3 - (one.demand === "roll_back" ? 0 : one.demand === "hold" ? 1 : 2) + 1;
  if (one.name === "fresh_data" || one.name === "sample_ratio" || one.estimate === null) return -1;
  if (one.logE !== null && one.logENeeded) return one.logE / one.logENeeded;
  return one.estimate !== null && one.threshold && one.outcome !== "unknown" && !one.interval
    ? one.estimate / one.threshold - 0.5
    : -1;
}

/** Which one is worth a look when nobody has picked one. */
export function closest(verdicts: Verdict[]): Verdict | undefined {
  return [...verdicts].sort((a, b) => nearness(b) - nearness(a))[0];
}

export function guardrails(
  component: string,
  verdicts: Verdict[],
  moments: Moment[],
  picked: string,
): Child {
  if (verdicts.length === 0) return h("p.empty", {}, "No guardrail has been judged yet.");
  const head = [
    "Guardrail",
    "New arm",
    "Control arm",
    "Estimate and interval",
    "Limit",
    "Last 30 min",
    "State",
  ];
  return h(
    "table.rails",
    { role: "table" },
    h("caption.unseen", {}, `Guardrails of ${component}`),
    h(
      "thead",
      { role: "rowgroup" },
      h(
        "tr",
        { role: "row" },
        ...head.map((one) => h("th", { role: "columnheader", scope: "col" }, one)),
      ),
    ),
    h(
      "tbody",
      { role: "rowgroup" },
      ...ordered(verdicts).map((one) => row(component, one, moments, one.name === picked)),
    ),
  );
}

function row(component: string, verdict: Verdict, moments: Moment[], picked: boolean): HTMLElement {
  const kind = unit(verdict);
  const [sign, word] = OUTCOMES[verdict.outcome];
  const cell = (label: string, ...children: Child[]) =>
    h("td", { role: "cell", "data-label": label }, ...children);
  const limit =
    verdict.name === "sample_ratio"
      ? `planned ${percent(verdict.threshold)}`
      : measure(verdict.threshold, kind);
  const interval = range(verdict.interval, kind);
  const name = h(
    "button.name",
    {
      type: "button",
      "data-do": "pick",
      "data-component": component,
      "data-name": verdict.name,
      "aria-pressed": String(picked),
      title: "Show it over time",
    },
    called(verdict.name),
  );
  return h(
    "tr",
    {
      role: "row",
      "data-key": verdict.name,
      "data-outcome": verdict.outcome,
      "data-demand": verdict.demand,
    },
    h(
      "th",
      { role: "rowheader", scope: "row" },
      name,
      h("span.mode", {}, MODES[verdict.mode] ?? verdict.mode),
    ),
    cell("New arm", ...arm(verdict.new)),
    cell("Control arm", ...arm(verdict.control)),
    cell(
      "Estimate",
      h(
        "span.est",
        {},
        h("b", {}, measure(verdict.estimate, kind)),
        interval && h("small", {}, interval),
      ),
      plot(verdict),
    ),
    cell("Limit", limit, evidence(verdict)),
    cell("Last 30 min", spark(verdict, moments)),
    cell("State", h("span.state", {}, h("span.sign", { "aria-hidden": "true" }, sign), word)),
  );
}

function arm(counts: Verdict["new"]): Child[] {
  if (counts.total === 0 && counts.affected === 0) return [h("span.soft", {}, "–")];
  return [
    h("b", {}, percent(share(counts))),
    h("small", {}, `${many(counts.affected)} of ${many(counts.total)}`),
  ];
}

function evidence(verdict: Verdict): Child {
  const { logE, logENeeded } = verdict;
  if (logE === null || logENeeded === null || logENeeded <= 0) return null;
  const full = Math.min(100, Math.max(0, (100 * logE) / logENeeded));
  const what = verdict.name === "sample_ratio" ? "evidence of a defect" : "evidence of harm";
  const title = `${what}: ln e is ${short(logE)}, ${short(logENeeded)} refutes`;
  return h(
    "span.evidence",
    { title, role: "img", "aria-label": title },
    h(
      "small",
      { "aria-hidden": "true" },
      logE > 0 ? `evidence ${short(logE)} of ${short(logENeeded)}` : "no evidence",
    ),
    logE > 0 && h("span.gauge", {}, h("span", { style: `width:${full.toFixed(0)}%` })),
  );
}

const [WIDE, TALL] = [120, 18];

/** Where on the drawing a value is: ratios by their logarithm around 1, the rest up to twice the limit. */
function scale(verdict: Verdict): (value: number) => number {
  const kind = unit(verdict);
  const inside = (place: number) => Math.min(WIDE, Math.max(0, place * WIDE));
  if (kind === "×")
    return (value) => inside(value <= 0 ? 0 : (Math.log(value) / Math.log(8) + 1) / 2);
  const top = verdict.name === "sample_ratio" ? 100 : Math.max(1e-9, 2 * (verdict.threshold ?? 1));
  return (value) => inside(value / top);
}

function plot(verdict: Verdict): Child {
  if (verdict.estimate === null && verdict.interval === null) return null;
  const at = scale(verdict);
  const middle = TALL / 2;
  const { interval, threshold, estimate } = verdict;
  const low = interval ? at(interval.low ?? 0) : 0;
  const high = interval ? at(interval.high ?? Number.POSITIVE_INFINITY) : 0;
  return h(
    "svg.plot",
    { viewBox: `-4 0 ${WIDE + 8} ${TALL}`, "aria-hidden": "true" },
    h("line.axis", { x1: 0, x2: WIDE, y1: middle, y2: middle }),
    interval &&
      h("line.interval", { x1: low, x2: Math.max(high, low + 1), y1: middle, y2: middle }),
    threshold !== null &&
      h("line.limit", { x1: at(threshold), x2: at(threshold), y1: 1, y2: TALL - 1 }),
    estimate !== null && h("circle", { cx: at(estimate), cy: middle, r: 4 }),
  );
}

function spark(verdict: Verdict, moments: Moment[]): Child {
  const [wide, tall] = [110, 26];
  const points = moments.map((moment) => moment.verdicts[verdict.name]?.estimate ?? null);
  const known = points.filter((one) => one !== null);
  const threshold = verdict.threshold ?? 0;
  if (known.length < 2) return h("span.soft", {}, "–");
  const top = Math.max(
    threshold * 1.3,
    ...known.map((one) => Math.min(one, threshold * 4 || one)),
    1e-9,
  );
  const every = Math.max(1, Math.floor(points.length / 60));
  const y = (value: number) => (tall - 2 - (Math.min(value, top) / top) * (tall - 4)).toFixed(1);
  let path = "";
  let drawing = false;
  points.forEach((value, index) => {
    if (index % every && index !== points.length - 1) return;
    if (value === null) drawing = false;
    else {
      path += `${drawing ? "L" : "M"}${((index / (points.length - 1)) * wide).toFixed(1)} ${y(value)}`;
      drawing = true;
    }
  });
  const kind = unit(verdict);
  const label = `from ${measure(known[0] ?? null, kind)} to ${measure(known.at(-1) ?? null, kind)}`;
  return h(
    "svg.spark",
    { viewBox: `0 0 ${wide} ${tall}`, role: "img", "aria-label": label },
    threshold > 0 && h("line.limit", { x1: 0, x2: wide, y1: y(threshold), y2: y(threshold) }),
    h("path", { d: path }),
  );
}

/** The picked one, large: its sentence, and places for the drawings. */
export function overTime(
  component: string,
  verdict: Verdict | undefined,
  moments: Moment[],
): Child {
  if (!verdict) return null;
  const enough = moments.length > 1;
  const kind = unit(verdict);
  const interval = range(verdict.interval, kind);
  const says = `${called(verdict.name)} over time: now ${measure(verdict.estimate, kind)}${interval ? `, between ${interval}` : ""}, limit ${measure(verdict.threshold, kind)}`;
  const withEvidence = verdict.logE !== null && verdict.logENeeded !== null;
  return h(
    "section.over",
    { "data-key": "over", "aria-live": "off" },
    h("h4", {}, `${called(verdict.name)} over time`),
    h(
      "p.sentence",
      {},
      verdict.summary ||
        `New arm ${counted(verdict.new)}, control arm ${counted(verdict.control)}.`,
    ),
    enough
      ? h(
          "div.pair",
          { "data-one": !withEvidence },
          figure(`${component}/rail`, says, [
            ["estimate", "line-new"],
            ["its interval", "band"],
            ["limit", "dash-alarm"],
          ]),
          withEvidence &&
            figure(
              `${component}/evidence`,
              `evidence of harm: ln e is ${short(verdict.logE)}, ${short(verdict.logENeeded)} refutes "no worse than tolerated"`,
              [
                ["evidence of harm (ln e)", "line-new"],
                ["what refutes “no worse than tolerated”", "dash-alarm"],
              ],
            ),
        )
      : h("p.empty", {}, "Nothing to draw over time yet."),
  );
}

/** A place for a drawing, with what it says in words and which line is which. */
export function figure(name: string, says: string, legend: [string, string][]): HTMLElement {
  return h(
    "figure",
    { "data-key": name },
    h("div.drawing", { "data-keep": true, "data-drawing": name, role: "img", "aria-label": says }),
    h(
      "figcaption",
      {},
      ...legend.map(([word, look]) =>
        h("span.key", {}, h(`i.${look}`, { "aria-hidden": "true" }), word),
      ),
    ),
  );
}
