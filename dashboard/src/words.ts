// Numbers, times and names as people read them. Pure.
import type { Counts, Verdict } from "./model.ts";

const THIN = "\u202f";
const grouped = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

/** 12 345, or a dash where nothing is known. */
export function many(value: number | null | undefined): string {
  return value == null ? "–" : grouped.format(value).replaceAll(",", THIN);
}

/** As many digits as say something: 0.04, 1.4, 24.7, 100. */
export function short(value: number | null | undefined): string {
  if (value == null) return "–";
  const size = Math.abs(value);
  const digits = size === 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  if (size > 0 && size < 0.01) return "<0.01";
  return value.toFixed(digits).replace(/\.0+$|(\.\d)0$/, "$1");
}

export function percent(value: number | null | undefined): string {
  return value == null ? "–" : `${short(value)}${THIN}%`;
}

export function share({ affected: some, total: of }: Counts): number | null {
  return of > 0 ? (100 * some) / of : null;
}

/** 31 of 500 (6.2 %). */
export function counted(counts: Counts): string {
  if (counts.total === 0) return counts.affected === 0 ? "none" : many(counts.affected);
  return `${many(counts.affected)} of ${many(counts.total)} (${percent(share(counts))})`;
}

export function milliseconds(value: number | null | undefined): string {
  if (value == null) return "–";
  return value >= 10_000 ? `${short(value / 1000)} s` : `${short(value)} ms`;
}

/** 45 s, 12 min, 3 h 20 min, 2 d: no more than two parts. */
export function span(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}

/** How long ago, where a clock that is a little ahead is no future. */
export function ago(at: number | null, now: number | null): string {
  if (at == null || now == null) return "";
  return now - at < 1500 ? "just now" : `${span(now - at)} ago`;
}

/** The clock of whoever looks; with the day where it is another. */
export function clock(at: number | null, now: number | null): string {
  if (at == null) return "–";
  const date = new Date(at);
  const time = date.toLocaleTimeString("en-GB");
  const today = now != null && new Date(now).toDateString() === date.toDateString();
  if (today) return time;
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${time}`;
}

const NAMES: Record<string, string> = {
  error_rate: "error rate",
  latency: "slow deliveries (p95)",
  drop_rate: "drop rate",
  fallbacks: "fallbacks to the old side",
  node_memory: "memory of a node",
  connect_failures: "failed connects",
  interruptions: "interruptions",
  drops: "lost events",
  errors: "failed requests",
  slow: "slow deliveries",
  resume_failures: "failed resumes",
  resets: "resets",
  flaps: "presence flaps",
  memory: "memory of a session",
  sample_ratio: "sizes of the arms",
  fresh_data: "fresh data",
};

/** What a guardrail is called. */
export function called(name: string): string {
  return NAMES[name] ?? name.replaceAll("_", " ");
}

/** What its estimate is: a percentage, seconds, or how many times the other arm's. */
export type Unit = "%" | "s" | "×";

export function unit(verdict: Pick<Verdict, "name" | "interval">): Unit {
  if (verdict.name === "fresh_data") return "s";
  const percentages = ["error_rate", "latency", "drop_rate", "fallbacks", "node_memory"];
  if (percentages.includes(verdict.name) || verdict.name === "sample_ratio") return "%";
  return verdict.name in NAMES || verdict.interval ? "×" : "%";
}

export function measure(value: number | null, unit: Unit): string {
  if (value == null) return "–";
  return unit === "×" ? `${short(value)}${THIN}×` : `${short(value)}${THIN}${unit}`;
}

/** From 0.2 to 4.1 ×; an end that is not known is open. */
export function range(interval: Verdict["interval"], unit: Unit): string {
  if (!interval || (interval.low == null && interval.high == null)) return "";
  const { low, high } = interval;
  if (low == null) return `up to ${measure(high, unit)}`;
  if (high == null) return `${measure(Math.max(0, low), unit)} or more`;
  return `${short(Math.max(0, low))} to ${measure(high, unit)}`;
}

/** What is meant by a way to stop. */
export const STOP_WORDS = {
  freeze: "nobody new is moved; who is on the new side stays there",
  "stop-and-keep":
    "nobody belongs on the new side any more; who is connected stays until they leave",
  "drain-back": "nobody belongs on the new side; who is connected is asked back at a pace",
  hard: "nobody belongs on the new side; connections to it are closed at once",
} as const;

/** A list of words in a sentence: a, b and c. */
export function listed(words: string[]): string {
  return words.length < 2
    ? (words[0] ?? "")
    : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}

/** A sentence begins with a capital and ends with a full stop. */
export function sentence(text: string): string {
  const trimmed = text.trim();
  if (!trimmed) return "";
  const ended = /[.!?…]$/.test(trimmed) ? trimmed : `${trimmed}.`;
  return ended.charAt(0).toUpperCase() + ended.slice(1);
}

/** No more than so many bytes of UTF-8, cut between characters. */
export function bytes(text: string, most: number): string {
  let [size, end] = [0, 0];
  for (const character of text) {
    size += new TextEncoder().encode(character).length;
    if (size > most) return text.slice(0, end);
    end += character.length;
  }
  return text;
}

/** What a rollout waits for, as the end of "it …". */
export function waiting(hold: string): string {
  const seen = /^(\d+) of (\d+) (users|events) seen$/.exec(hold);
  if (seen) return `waits for ${many(Number(seen[2]))} ${seen[3]} (has ${many(Number(seen[1]))})`;
  const bakes = /^bakes for another (\d+) s$/.exec(hold);
  return bakes ? `bakes for another ${span(1000 * Number(bakes[1]))}` : hold;
}
