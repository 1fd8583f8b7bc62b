/**
 * What a client measured since its last report: small enough to be sent rarely. Knows no connection.
 *
 * The delay of an event is its receipt minus the time the broker took it, on two clocks. The gateway
 * tells its time in `welcome` and `ping`: it was not before the `connect` that `welcome` answers, and not
 * after the receipt. How far the clocks are apart therefore lies between two bounds, which the quickest
 * of each kind sets. While only one is known, the quickest event ever counts as without delay, and the
 * report says so (`"clock":"floor"`).
 */

/** The gateway takes no more of one user in a minute. */
const SAMPLES = 30;

export type Counter =
  | "connects"
  | "connectFailures"
  | "interruptions"
  | "resumes"
  | "resets"
  | "fallbacks"
  | "migrations"
  | "failedMigrations"
  | "events";

/** What did not happen is left out. */
export type Stats = { [what in Counter]?: number } & {
  since: number;
  /** Milliseconds that connecting took, in all. */
  connect: number;
  /** Receipt minus `time`, uncorrected. */
  delays: number[];
};

/** How far our clock is ahead of the gateway's: not less and not more. */
export interface Clock {
  low: number;
  high: number;
}

export function noStats(since: number): Stats {
  return { since, connect: 0, delays: [] };
}

/** Takes one more delay; once there are many, in the place of one drawn by `dice`. */
export function sampled({ delays, events = 0 }: Stats, delay: number, dice: number): void {
  const place = delays.length < SAMPLES ? delays.length : Math.floor(dice * events);
  if (place < SAMPLES) delays[place] = delay;
}

/** The gateway's clock was at `time`, before `now` and, if it is known, after `asked`. */
export function synchronised(clock: Clock, time: number, now: number, asked = -Infinity): void {
  clock.low = Math.max(clock.low, asked - time);
  clock.high = Math.min(clock.high, now - time);
  // A clock was set meanwhile: only what was told last is true.
  if (clock.high < clock.low) {
    clock.low = asked - time;
    clock.high = now - time;
  }
}

/** The report's `stats`, or none if there is nothing to tell. */
export function summary(stats: Stats, { low, high }: Clock, now: number): object | undefined {
  const { since, connect, delays, ...counts } = stats;
  if (!Object.keys(counts).length) return;
  const measured = low > -Infinity;
  const ahead = measured ? (low + high) / 2 : high;
  const sorted = delays.map((delay) => Math.max(0, Math.round(delay - ahead)));
  sorted.sort((a, b) => a - b);
  return {
    ...counts,
    over: Math.round(now - since),
    connect: counts.connects && Math.round(connect / counts.connects),
    delays: sorted,
    clock: measured ? "measured" : "floor",
  };
}
