// The large drawings: shares and guardrails over time, latencies of both arms. Knows uPlot; what a drawing
// says is also said in words beside it, since a canvas says nothing to who cannot see it.
import uPlot from "uplot";
import type { Arm, Moment, Verdict } from "./model.ts";
import { milliseconds, percent, short, unit } from "./words.ts";

type Data = uPlot.AlignedData;

/** A drawing that is made anew when its place or the colours change, and else only fed. */
class Drawing {
  #plot: uPlot | null = null;
  #shape = "";
  #watch: ResizeObserver;

  constructor(private readonly place: HTMLElement) {
    this.#watch = new ResizeObserver(() => this.#fit());
    this.#watch.observe(place);
  }

  draw(shape: string, options: () => Omit<uPlot.Options, "width" | "height">, data: Data): void {
    if (shape !== this.#shape || !this.#plot) {
      this.#shape = shape;
      this.#plot?.destroy();
      this.#plot = new uPlot({ ...options(), ...this.#size() }, data, this.place);
    } else this.#plot.setData(data);
  }

  end(): void {
    this.#watch.disconnect();
    this.#plot?.destroy();
  }

  #size() {
    return { width: Math.max(200, this.place.clientWidth), height: 170 };
  }

  #fit(): void {
    const { width } = this.#size();
    if (this.#plot && this.#plot.width !== width) this.#plot.setSize(this.#size());
  }
}

const drawings = new Map<HTMLElement, Drawing>();

function on(place: HTMLElement): Drawing {
  let drawing = drawings.get(place);
  if (!drawing) {
    drawing = new Drawing(place);
    drawings.set(place, drawing);
  }
  return drawing;
}

/** Forgets drawings whose places are gone; all of them when the colours have changed. */
export function sweep(all = false): void {
  for (const [place, drawing] of drawings) {
    if (!all && place.isConnected) continue;
    drawing.end();
    drawings.delete(place);
  }
}

const colour = (name: string) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function axes(values: (value: number) => string, time: boolean): uPlot.Axis[] {
  const common = {
    stroke: colour("soft"),
    grid: { stroke: colour("line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
  };
  const y = {
    ...common,
    size: 56,
    values: (_: uPlot, all: number[]) => all.map((one) => (one == null ? "" : values(one))),
  };
  return [
    time
      ? { ...common, size: 30, space: 70, values: clockTicks }
      : { ...common, size: 30, space: 44 },
    y,
  ];
}

const clockTicks: uPlot.Axis.Values = (_, seconds) => {
  const close = (seconds[1] ?? 60) - (seconds[0] ?? 0) < 60;
  const parts: Intl.DateTimeFormatOptions = { hour: "2-digit", minute: "2-digit" };
  if (close) parts.second = "2-digit";
  return seconds.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB", parts));
};

const base = {
  cursor: { show: false },
  legend: { show: false },
  padding: [8, 22, 0, 0] as uPlot.Padding,
};
const none = () => [];
/** A line of one point is none: where there are few, each is marked. */
const few = (plot: uPlot, index: number) =>
  (plot.data[index] ?? []).filter((one) => one != null).length < 12;

function line(name: string, stroke: string, dash?: number[], width = 2): uPlot.Series {
  const series: uPlot.Series = {
    label: name,
    stroke,
    width,
    points: { show: false },
    spanGaps: false,
  };
  return dash ? { ...series, dash } : series;
}

/** The three percentages over time. */
export function shares(place: HTMLElement, moments: Moment[]): void {
  const at = moments.map((moment) => moment.at / 1000);
  const [target, assigned, live] = [0, 1, 2].map((index) =>
    moments.map((moment) => moment.figures[index] ?? null),
  );
  const all = [target, assigned, live].flatMap((one) => one ?? []).filter((one) => one !== null);
  const top = ceiling(Math.max(1, ...all));
  const options = () => ({
    ...base,
    scales: { y: { range: [0, top] as uPlot.Range.MinMax } },
    axes: axes((value) => percent(value), true),
    series: [
      {},
      line("target", colour("soft"), [2, 4]),
      line("assigned", colour("old")),
      line("live", colour("new")),
    ],
  });
  on(place).draw(`${top}`, options, [at, target ?? [], assigned ?? [], live ?? []] as Data);
}

function ceiling(value: number): number {
  for (const round of [1, 2, 5, 10, 25, 50, 75, 100])
    if (value <= round) return round === 100 ? 105 : round * 1.05;
  return value * 1.05;
}

/** One guardrail's estimate over time with its interval, and the line it has to keep to. */
export function guardrail(place: HTMLElement, verdict: Verdict, moments: Moment[]): void {
  const its = moments.map((moment) => moment.verdicts[verdict.name] ?? null);
  const kind = unit(verdict);
  const estimates = its.map((one) => one?.estimate ?? null);
  const threshold = verdict.threshold;
  const seen = [...estimates, threshold].filter((one) => one !== null);
  // An interval may be wide open at first: what matters is near the estimate and the limit.
  const ends = its.map((one) => one?.high ?? null).filter((one) => one !== null);
  const top = nice(
    Math.max(
      1e-9,
      Math.max(...seen, 0) * 1.4,
      Math.min(Math.max(0, ...ends), 3 * Math.max(...seen, 0)),
    ),
  );
  const inside = (value: number | null | undefined) =>
    value == null ? null : Math.min(top, Math.max(0, value));
  const bounded = its.map((one) => one !== null && (one.low !== null || one.high !== null));
  const lows = its.map((one, index) => (bounded[index] ? (inside(one?.low) ?? 0) : null));
  const highs = its.map((one, index) => (bounded[index] ? (inside(one?.high) ?? top) : null));
  const options = () => ({
    ...base,
    scales: { y: { range: [0, top] as uPlot.Range.MinMax } },
    axes: axes((value) => (kind === "×" ? `${short(value)} ×` : `${short(value)} ${kind}`), true),
    series: [
      {},
      { ...line("upper", colour("band"), undefined, 1) },
      { ...line("lower", colour("band"), undefined, 1) },
      line("limit", colour("alarm"), [6, 4]),
      { ...line("estimate", colour("new")), points: { show: few, size: 5 } },
    ],
    bands: [{ series: [1, 2] as uPlot.Band.Bounds, fill: colour("band-fill") }],
  });
  const at = moments.map((moment) => moment.at / 1000);
  const limit = moments.map(() => threshold);
  on(place).draw(`${verdict.name} ${top}`, options, [at, highs, lows, limit, estimates] as Data);
}

/** The evidence against "no worse than tolerated" over time, and how much refutes it. */
export function evidence(place: HTMLElement, verdict: Verdict, moments: Moment[]): void {
  const its = moments.map((moment) => moment.verdicts[verdict.name]?.logE ?? null);
  const needed = verdict.logENeeded ?? 0;
  const known = its.filter((one) => one !== null);
  const top = nice(Math.max(needed * 1.4, ...known));
  const bottom = -nice(Math.max(needed * 0.4, ...known.map((one) => -one)));
  const options = () => ({
    ...base,
    scales: { y: { range: [bottom, top] as uPlot.Range.MinMax } },
    axes: axes((value) => short(value), true),
    series: [{}, line("needed", colour("alarm"), [6, 4]), line("evidence", colour("new"))],
  });
  const at = moments.map((moment) => moment.at / 1000);
  on(place).draw(`${verdict.name} ${bottom} ${top}`, options, [
    at,
    moments.map(() => needed),
    its,
  ] as Data);
}

function nice(value: number): number {
  const power = 10 ** Math.floor(Math.log10(value));
  const steps = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];
  return power * (steps.find((step) => value <= step * power * 1.000001) ?? 10);
}

/** Which share of deliveries took how long, both arms over each other. */
export function latencies(place: HTMLElement, arms: [Arm, Arm], slowAbove: number | null): void {
  const ends = new Set<number>();
  const shares = arms.map((arm) => {
    const buckets = arm.latency?.buckets ?? [];
    const all = buckets.reduce((sum, [, many]) => sum + many, 0);
    const found = new Map<number, number>();
    for (const [end, many] of buckets) {
      const at = end ?? 60_000;
      ends.add(at);
      found.set(at, (found.get(at) ?? 0) + (all ? (100 * many) / all : 0));
    }
    return all ? found : null;
  });
  const at = filled([...ends].sort((a, b) => a - b));
  const rows = shares.map((found) => at.map((end) => (found ? (found.get(end) ?? 0) : null)));
  const top = nice(Math.max(1, ...rows.flat().map((one) => one ?? 0)) * 1.05);
  const used = at.filter((_, index) => rows.some((row) => (row[index] ?? 0) > 0));
  const low = Math.max(0.5, (used[0] ?? 1) * 0.8);
  const high = Math.max((used.at(-1) ?? 1000) * 1.3, low * 10);
  const stepped = uPlot.paths.stepped?.({ align: -1 });
  const arm = (name: string, stroke: string, fill: string, dash?: number[]): uPlot.Series => ({
    ...line(name, stroke, dash),
    fill,
    ...(stepped ? { paths: stepped } : {}),
  });
  const options = () => ({
    ...base,
    scales: {
      x: { time: false, distr: 3 as const, range: [low, high] as uPlot.Range.MinMax },
      y: { range: [0, top] as uPlot.Range.MinMax },
    },
    axes: [
      {
        ...(axes((value) => percent(value), false)[0] as uPlot.Axis),
        splits: () => decades(low, high),
        filter: (_: uPlot, all: number[]) => all,
        values: (_: uPlot, all: number[]) => all.map((one) => milliseconds(one)),
      },
      axes((value) => percent(value), false)[1] as uPlot.Axis,
    ],
    series: [
      {},
      arm("control", colour("old"), colour("old-fill"), [5, 3]),
      arm("new", colour("new"), colour("new-fill")),
    ],
    hooks: { draw: slowAbove === null ? none() : [(plot: uPlot) => marker(plot, slowAbove)] },
  });
  on(place).draw(`${low.toPrecision(2)} ${high.toPrecision(2)} ${top} ${slowAbove}`, options, [
    at,
    rows[1],
    rows[0],
  ] as Data);
}

/** Bins that nobody fell into are not told; they are drawn, so that none looks wider than it is. */
function filled(ends: number[]): number[] {
  const ratios = ends.slice(1).map((end, index) => end / (ends[index] ?? end));
  const bin = Math.min(...ratios, 1.2);
  if (!(bin > 1.001)) return ends;
  return ends.flatMap((end, index) => {
    const before = ends[index - 1];
    if (before !== undefined && end / before < 1.5 * bin) return [end];
    const edges = before === undefined ? [end / bin] : [before * bin, end / bin];
    return [...new Set(edges.filter((edge) => before === undefined || edge < end)), end];
  });
}

function decades(low: number, high: number): number[] {
  const wide = Math.log10(high / low) > 2.2;
  const marks: number[] = [];
  for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10)
    for (const step of wide ? [1] : [1, 2, 5]) marks.push(step * power);
  return marks.filter((mark) => mark >= low && mark <= high);
}

/** Where a delivery becomes slow. */
function marker(plot: uPlot, at: number): void {
  const { left, top, width, height } = plot.bbox;
  const x = Math.round(plot.valToPos(at, "x", true));
  if (x < left || x > left + width) return;
  const { ctx } = plot;
  ctx.save();
  ctx.strokeStyle = colour("alarm");
  ctx.setLineDash([6, 4]);
  ctx.beginPath();
  ctx.moveTo(x, top);
  ctx.lineTo(x, top + height);
  ctx.stroke();
  ctx.restore();
}
