/**
 * What a client knows, what can happen to it, and what it may want done: the three closed sets that
 * the machine is made of. Types only, and how a state begins.
 */
import type { View } from "./presence.js";
import type {
  ClientFrame,
  Message,
  Position,
  Published,
  Page,
  Refusal,
  Route,
  ServerFrame,
  TransportName,
  Goodbye,
} from "./protocol.js";
import { type Clock, noStats, type Stats } from "./report.js";

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
  readonly since?: Position;
  readonly presence?: boolean;
  /** Shows the session in the channel; `undefined` or `null`: not. */
  readonly state?: unknown;
}

/** A channel that is wanted, and how far it was delivered. */
export interface Reading extends Wish {
  readonly position?: Position;
  /** How far it was delivered before somebody stopped listening: not again, whatever is under way. */
  readonly floor?: Position;
  /** Where the log stood that was lost last: what a second connection still tells of it is void. */
  readonly past?: Position;
  /** A stream that names it is refused. */
  readonly barred?: boolean;
}

/** What one connection was asked of a channel, and what became of it. */
export interface Subscription {
  readonly stage: "asked" | "on" | "later" | "refused";
  readonly request: number;
  readonly presence: boolean;
  /** The state it was given, as JSON. */
  readonly shown: string;
  /** When to ask again. */
  readonly retryAt?: number;
}

/**
 * One connection. There is one, and a second only while the client moves. Like [State] it is written to
 * by the machine alone, on a copy.
 */
export interface Link {
  id: number;
  transport: TransportName;
  openedAt: number;
  /** It has to be welcomed by then. */
  deadline: number;
  readyAt?: number;
  heard: number;
  heartbeat: number;
  subscriptions: Map<string, Subscription>;
  views: Map<string, View>;
  /** Requests that went out on it. */
  sent: Set<number>;
  /** Frames that wait for their turn. */
  queue: ClientFrame[];
  /** Frames that may go out at once, counted like the gateway does: for each connection. */
  allowance: number;
  allowedAt: number;
  goodbye?: Goodbye;
  /** A request whose answer proves that the link lives. */
  probe?: { readonly request: number; readonly until: number };
  proved: boolean;
}

/** A publish or a read that waits for its answer, over as many connections as it takes. */
export interface Request {
  /** The caller's number. */
  readonly key: number;
  readonly frame: ClientFrame & { type: "publish" | "history" };
  readonly sentAt?: number;
  readonly retryAt?: number;
  /** Its event came before the answer, with this time. */
  readonly time?: number;
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

/** A move from one transport to the other that is under way. */
export interface Move {
  readonly reason: string;
  readonly until: number;
}

export interface State {
  settings: Settings;
  phase: Phase;
  /** When waiting or preparing ends. */
  until?: number;
  /** The wait may be cut short when the network comes back. */
  eager: boolean;
  attempt: number;
  session?: string;
  member?: string;
  token?: string;
  /** What is being fetched, by its number. */
  asking?: { readonly id: number; readonly what: "token" | "route" };
  tokenRetryAt?: number;
  /** Times in a row that the gateway refused a token that was fetched for it. */
  refused: number;
  route?: Route;
  routedAt: number;
  link?: Link;
  next?: Link;
  /** A stream was refused for one of its channels: the next is opened with one alone. */
  narrow?: boolean;
  move?: Move;
  /** When another connection with this session was opened last: it may cost the old one its place. */
  overlappedAt: number;
  /** When the connection was lost that is being replaced. */
  lostAt?: number;
  channels: Map<string, Reading>;
  /** How far channels were delivered that nobody listens to now; the latest few. */
  left: Map<string, Position>;
  /** What was shown of who is in a channel. */
  shown: Map<string, View>;
  requests: Map<number, Request>;
  counter: number;
  websocket: {
    readonly worked: boolean;
    /** Tries in a row that failed. */
    readonly failures: number;
    /** When to try again while SSE serves. */
    readonly retryAt?: number;
    readonly retries: number;
  };
  stats: Stats;
  clock: Clock;
  /** The publish acknowledged last, whose event tells how far the clocks are apart. */
  acked?: { readonly id: string; readonly sent: number; readonly at: number };
  /** Unset where the gateway takes no reports. */
  reportAt?: number;
  /** The number of the last report. */
  reported?: number;
}

export type Happening =
  | { readonly type: "connect" }
  | { readonly type: "close" }
  | { readonly type: "want"; readonly channel: string; readonly wish?: Wish }
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
      readonly at?: string;
      /** It answers a POST: it did not come on the stream. */
      readonly posted?: boolean;
    }
  | { readonly type: "lost"; readonly link: number; readonly why: Loss }
  | {
      readonly type: "token";
      readonly ask: number;
      readonly token?: string;
      readonly reason?: string;
    }
  | { readonly type: "route"; readonly ask: number; readonly route?: Route }
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
  readonly after?: number;
  readonly reason?: string;
  /** The gateway's error code. */
  readonly error?: string;
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
  | { readonly type: "closed"; readonly reason: string; readonly code?: number }
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
      readonly token?: string;
    }
  | { readonly do: "send"; readonly link: number; readonly frames: readonly ClientFrame[] }
  | { readonly do: "close"; readonly link: number }
  | { readonly do: "deliver"; readonly message: Message }
  | {
      readonly do: "presence";
      readonly channel: string;
      readonly before: View;
      readonly view: View;
    }
  | { readonly do: "emit"; readonly event: ClientEvent }
  | { readonly do: "settle"; readonly key: number; readonly answer: Published | Page | Refusal }
  | {
      readonly do: "fetch";
      readonly what: "token" | "route";
      readonly ask: number;
      readonly token?: string;
    }
  | { readonly do: "beacon"; readonly session: string; readonly frame: ClientFrame }
  | { readonly do: "remember"; readonly blocked: boolean };

/** A client that was asked for nothing yet. `blocked`: WebSockets are known not to get through here. */
export function begin(settings: Settings, now: number, token?: string, blocked = false): State {
  return {
    settings,
    phase: "idle",
    eager: false,
    attempt: 0,
    token,
    refused: 0,
    routedAt: Number.NEGATIVE_INFINITY,
    overlappedAt: Number.NEGATIVE_INFINITY,
    channels: new Map(),
    left: new Map(),
    shown: new Map(),
    requests: new Map(),
    counter: 0,
    websocket: { worked: false, failures: blocked ? 1 : 0, retries: 0 },
    stats: noStats(now),
    clock: { floor: Number.POSITIVE_INFINITY },
    reportAt: settings.reportEvery > 0 ? now + settings.reportEvery : undefined,
  };
}
