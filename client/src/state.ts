/**
 * What a client knows, what can happen to it, and what it may want done: the three closed sets that
 * the machine is made of. Types only, and how a state begins.
 */
import type { PresenceChange, View } from "./presence.js";
import type {
  ClientFrame,
  Goodbye,
  Message,
  Page,
  Position,
  Published,
  Refusal,
  Route,
  ServerFrame,
  TransportName,
} from "./protocol.js";
import { type Clock, noStats, type Stats } from "./report.js";

/** No moment at all. */
export const NEVER = Number.POSITIVE_INFINITY;

/** What a client is set to for its whole life. Times are in milliseconds. */
export interface Settings {
  readonly transport: "auto" | TransportName;
  /** Tokens can be had anew. */
  readonly refreshable: boolean;
  /** A WebSocket that has not answered by then is given up for SSE. */
  readonly fallbackAfter: number;
  /** The first pause is a random part of this; it doubles with each try. */
  readonly backoffMin: number;
  readonly backoffMax: number;
  /** Frames sent per second and at once, below what the gateway closes a connection for. */
  readonly rate: number;
  readonly burst: number;
  /** Publishes and reads that may wait for an answer. */
  readonly pending: number;
  /** How often a report goes out; 0 is never. */
  readonly reportEvery: number;
}

export const DEFAULTS: Settings = {
  transport: "auto",
  refreshable: false,
  fallbackAfter: 2500,
  backoffMin: 500,
  backoffMax: 30_000,
  rate: 40,
  burst: 80,
  pending: 1000,
  reportEvery: 60_000,
};

/** What the application wants of a channel. */
export interface Wish {
  readonly since?: Position | undefined;
  readonly presence?: boolean;
  /** Shows the session in the channel; `undefined` or `null`: not. */
  readonly state?: unknown;
}

/** A channel that is wanted, and how far it was delivered. */
export interface Reading extends Wish {
  position?: Position | undefined;
  /** How far it was delivered before somebody stopped listening: not again, whatever is under way. */
  readonly floor?: Position | undefined;
  /** Where the log stood that was lost last: what a second connection still tells of it is void. */
  past?: Position | undefined;
  /** A stream that names it is refused. */
  barred?: boolean;
}

/** What one connection was asked of a channel, and what became of it. `later`: ask again in a moment. */
export interface Subscription {
  stage: "asked" | "on" | "later" | "refused";
  request: number;
  readonly presence: boolean;
  /** The state it was given, as JSON. */
  shown: string;
}

/** One connection. There is one, and a second only while the client moves. */
export interface Link {
  readonly id: number;
  readonly transport: TransportName;
  readonly openedAt: number;
  /** When it was asked for its welcome: the WebSocket once it was open. */
  askedAt: number;
  readyAt?: number;
  /** It is given up then, unless it is welcomed, and from then on heard of, before. */
  dies: number;
  heartbeat: number;
  readonly subscriptions: Map<string, Subscription>;
  readonly views: Map<string, View>;
  /** Requests that went out on it. */
  readonly sent: Set<number>;
  /** Frames that wait for their turn. */
  readonly queue: ClientFrame[];
  /** When the next frame may go out, counted like the gateway does: for each connection. */
  paid: number;
  goodbye?: Goodbye;
  /** A request whose answer proves that the link lives. */
  probe?: number | undefined;
  proved?: boolean;
}

/** A publish or a read that waits for its answer, over as many connections as it takes. */
export interface Request {
  /** The caller's number. */
  readonly key: number;
  readonly frame: ClientFrame & { type: "publish" | "history" };
  later?: boolean;
}

/**
 * - `idle`: nothing was asked for yet
 * - `preparing`: a token or a route is fetched
 * - `opening`: a connection is being opened
 * - `connected`
 * - `waiting`: for the next try
 * - `away`: the page is hidden away and may come back
 * - `closed`: for good, until `connect`
 */
export type Phase = "idle" | "preparing" | "opening" | "connected" | "waiting" | "away" | "closed";

/**
 * When something is due: the end of waiting or preparing, of a move, of what is asked again; the next
 * fetch of a token, try of the WebSocket, and report.
 */
export type Alarm = "wait" | "move" | "again" | "token" | "upgrade" | "report";

export interface State {
  readonly settings: Settings;
  /** Who this is where there is no token: the same over visits. */
  readonly unit: string | undefined;
  phase: Phase;
  readonly alarms: Record<Alarm, number>;
  /** The wait may be cut short when the network comes back. */
  eager: boolean;
  attempt: number;
  session?: string;
  member?: string | undefined;
  token: string | undefined;
  /** What is being fetched, and its number. */
  asking?: "token" | "route" | undefined;
  asked: number;
  /** Times in a row that the gateway refused a token that was fetched for it. */
  refused: number;
  route?: Route;
  routedAt: number;
  link?: Link | undefined;
  next?: Link | undefined;
  /** Why it moves. */
  reason: string;
  /** When another connection with this session was opened last: it may cost the old one its place. */
  overlappedAt: number;
  /** When the connection was lost that is being replaced. */
  lostAt?: number | undefined;
  readonly channels: Map<string, Reading>;
  /** How far channels were delivered that nobody listens to now; the latest few. */
  readonly left: Map<string, Position>;
  /** What was shown of who is in a channel. */
  readonly shown: Map<string, View>;
  readonly requests: Map<number, Request>;
  counter: number;
  /** The WebSocket: whether it ever worked, tries in a row that failed, tries beside a stream. */
  worked: boolean;
  failures: number;
  retries: number;
  stats: Stats;
  readonly clock: Clock;
  /** The number of the last report. */
  reported?: number;
}

export type Happening =
  | { readonly type: "connect" }
  | { readonly type: "close" }
  | { readonly type: "want"; readonly channel: string; readonly wish?: Wish | undefined }
  | {
      readonly type: "request";
      readonly key: number;
      readonly frame: Omit<Request["frame"], "id">;
    }
  | { readonly type: "move"; readonly to: TransportName; readonly reason: string }
  | { readonly type: "opened"; readonly link: number }
  | {
      readonly type: "frame";
      readonly link: number;
      readonly frame: ServerFrame;
      /** On SSE: where the stream stands. */
      readonly at?: string | undefined;
      /** It answers a POST: it did not come on the stream. */
      readonly posted?: boolean | undefined;
    }
  | { readonly type: "lost"; readonly link: number; readonly why: Loss }
  /** A token or a route, as asked for by this number; without one, the reason. */
  | {
      readonly type: "fetched";
      readonly ask: number;
      readonly token?: string | undefined;
      readonly route?: Route | undefined;
      readonly reason?: string;
    }
  | { readonly type: "tick" }
  /** The network or the page's visibility came back. */
  | { readonly type: "wake" }
  /** The page is put away, perhaps for good. */
  | { readonly type: "hide" }
  | { readonly type: "show" };

/** Something happened. `dice` is drawn for it, 0 ≤ dice < 1. */
export type Input = Happening & { readonly now: number; readonly dice: number };

/** Why a connection ended. */
export interface Loss {
  /** A WebSocket's close code. */
  readonly code?: number;
  /** The HTTP status that refused a stream or a POST. */
  readonly status?: number;
  /** `Retry-After` in milliseconds. */
  readonly after?: number | undefined;
  readonly reason?: string | undefined;
  /** The gateway's error code. */
  readonly error?: string | undefined;
}

export type ClientEvent =
  | { readonly type: "connected"; readonly transport: TransportName; readonly fallback: boolean }
  | { readonly type: "reconnecting"; readonly reason: string; readonly after: number }
  | { readonly type: "resumed"; readonly transport: TransportName; readonly gap: number }
  | {
      readonly type: "reset";
      readonly channel: string;
      readonly position: Position;
      readonly reason: string;
    }
  | {
      readonly type: "migrated";
      readonly from: TransportName;
      readonly to: TransportName;
      readonly reason: string;
    }
  | { readonly type: "closed"; readonly reason: string; readonly code?: number | undefined }
  | {
      readonly type: "error";
      readonly code: string;
      readonly message: string;
      readonly channel?: string;
    };

export type Effect =
  | {
      readonly do: "open";
      readonly link: number;
      readonly transport: TransportName;
      readonly path: string;
    }
  | { readonly do: "send"; readonly link: number; readonly frames: readonly ClientFrame[] }
  | { readonly do: "close"; readonly link: number }
  | { readonly do: "deliver"; readonly message: Message }
  | { readonly do: "presence"; readonly channel: string; readonly change: PresenceChange }
  | { readonly do: "emit"; readonly event: ClientEvent }
  | { readonly do: "settle"; readonly key: number; readonly answer: Published | Page | Refusal }
  | {
      readonly do: "fetch";
      readonly what: "token" | "route";
      readonly ask: number;
    }
  | { readonly do: "beacon"; readonly session: string; readonly frames: readonly ClientFrame[] }
  | { readonly do: "remember"; readonly blocked: boolean };

/** A client that was asked for nothing yet. `blocked`: WebSockets are known not to get through here. */
export function begin(
  settings: Settings,
  now: number,
  token?: string,
  blocked = false,
  unit?: string,
): State {
  const report = settings.reportEvery ? now + settings.reportEvery : NEVER;
  return {
    settings,
    unit,
    phase: "idle",
    alarms: { wait: NEVER, move: NEVER, again: NEVER, token: NEVER, upgrade: NEVER, report },
    eager: false,
    attempt: 0,
    token,
    asked: 0,
    refused: 0,
    routedAt: -NEVER,
    reason: "",
    overlappedAt: -NEVER,
    channels: new Map(),
    left: new Map(),
    shown: new Map(),
    requests: new Map(),
    counter: 0,
    worked: false,
    failures: +blocked,
    retries: 0,
    stats: noStats(now),
    clock: { low: -NEVER, high: NEVER },
  };
}
