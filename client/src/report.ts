/**
 * What a client measured since its last report: small enough to be sent rarely. Pure.
 *
 * The delay of an event is its receipt minus the time the broker took it, on two clocks. How far they
 * are apart is measured with this client's own publishes (the event's time lies between sending and
 * acknowledgement); a client that publishes nothing takes the quickest event it ever saw as zero, and
 * its report says so (`"clock":"floor"`).
 */

const SAMPLES = 64;

export interface Stats {
  readonly since: number;
  readonly connects: number;
  readonly connectMs: number;
  readonly interruptions: number;
  readonly resumes: number;
  readonly resets: number;
  readonly fallbacks: number;
  readonly migrations: number;
  readonly failedMigrations: number;
  readonly events: number;
  /** Receipt minus `time`, uncorrected. */
  readonly delays: readonly number[];
}

export type Counter = Exclude<keyof Stats, "since" | "connectMs" | "delays">;

/** How far the broker's clock is ahead of ours, as far as known. */
export interface Clock {
  /** By the publish with the shortest round trip. */
  readonly measured?: { readonly offset: number; readonly trip: number };
  /** The smallest uncorrected delay. */
  readonly floor: number;
}

export function noStats(since: number): Stats {
  return {
    since,
    connects: 0,
    connectMs: 0,
    interruptions: 0,
    resumes: 0,
    resets: 0,
    fallbacks: 0,
    migrations: 0,
    failedMigrations: 0,
    events: 0,
    delays: [],
  };
}

/** Takes one more delay; once there are many, in the place of one drawn by `dice`. */
export function sampled(stats: Stats, delay: number, dice: number): Stats {
  const delays = [...stats.delays];
  const events = stats.events + 1;
  const place = delays.length < SAMPLES ? delays.length : Math.floor(dice * events);
  if (place < SAMPLES) delays[place] = delay;
  return { ...stats, events, delays };
}

/** A publish that went out at `sent` and was acknowledged at `acked` got `time` from the broker. */
export function synchronised(clock: Clock, sent: number, acked: number, time: number): Clock {
  const trip = acked - sent;
  if (clock.measured && clock.measured.trip <= trip) return clock;
  return { ...clock, measured: { offset: time - (sent + acked) / 2, trip } };
}

/** The report's `stats`, or none if there is nothing to tell. */
export function summary(stats: Stats, clock: Clock, now: number): object | undefined {
  const { since, connectMs, delays, ...counts } = stats;
  if (!Object.values(counts).some((count) => count > 0)) return;
  const shift = clock.measured ? clock.measured.offset : -clock.floor;
  const sorted = delays
    .map((delay) => Math.max(0, Math.round(delay + shift)))
    .sort((a, b) => a - b);
  const at = (share: number) =>
    sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  return {
    ...counts,
    over: Math.round(now - since),
    ...(counts.connects && { connect: Math.round(connectMs / counts.connects) }),
    ...(sorted.length && {
      latency: {
        samples: sorted.length,
        p50: at(0.5),
        p95: at(0.95),
        max: at(1),
        clock: clock.measured ? "measured" : "floor",
      },
    }),
  };
}
