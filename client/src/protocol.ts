/**
 * The words on the wire, as protocol/PROTOCOL.md has them. Types and the few rules that can be read
 * off a frame alone; knows no connection and no state.
 */

export type TransportName = "websocket" | "sse";

/** A place in a channel's log: `EPOCH-OFFSET`. */
export type Position = string;

/** A session that shows itself in a channel. `session` is its public name. */
export interface Member<S = unknown> {
  readonly session: string;
  readonly user?: string;
  readonly info?: unknown;
  readonly state?: S;
  readonly since?: number;
}

/** What is told of a channel's members: all of them, or who came, changed and went. */
export interface PresenceNews {
  readonly members?: readonly Member[];
  readonly joined?: readonly Member[];
  readonly updated?: readonly Member[];
  readonly left?: readonly { readonly session: string }[];
  readonly count?: number;
}

/** An event as a client is told of it. */
export interface Message<T = unknown> {
  readonly channel: string;
  readonly id: string;
  readonly name?: string;
  readonly data: T;
  readonly position: Position;
  readonly time: number;
}

export interface Page<T = unknown> {
  readonly channel: string;
  readonly events: readonly Omit<Message<T>, "channel">[];
  readonly position: Position;
  readonly complete: boolean;
}

export type ClientFrame =
  | {
      readonly type: "connect";
      readonly id?: number;
      readonly session?: string;
      readonly token?: string;
      readonly client?: string;
      readonly unit?: string;
      readonly overlap?: true;
    }
  | {
      readonly type: "subscribe";
      readonly id: number;
      readonly channel: string;
      readonly since?: Position;
      readonly presence?: true | undefined;
      readonly state?: unknown;
    }
  | { readonly type: "unsubscribe"; readonly id: number; readonly channel: string }
  | {
      readonly type: "presence";
      readonly id: number;
      readonly channel: string;
      readonly state: unknown;
    }
  | {
      readonly type: "publish";
      readonly id: number;
      readonly channel: string;
      readonly name?: string;
      readonly data: unknown;
      readonly message_id: string;
    }
  | {
      readonly type: "history";
      readonly id: number;
      readonly channel: string;
      readonly since?: Position;
      readonly limit?: number;
    }
  | { readonly type: "report"; readonly id: number; readonly stats: unknown }
  /** I leave by my own will. */
  | { readonly type: "goodbye" }
  | { readonly type: "pong" };

export interface Published {
  readonly type: "published";
  readonly id?: number;
  readonly message_id: string;
  readonly position: Position;
  readonly duplicate: boolean;
}

export interface Refusal {
  readonly type: "error";
  readonly id?: number;
  readonly code: string;
  readonly message: string;
}

export interface Goodbye {
  readonly type: "goodbye";
  readonly code: number;
  readonly reason: string;
  readonly reconnect: boolean;
  readonly after: number;
}

export type ServerFrame =
  | {
      readonly type: "welcome";
      readonly id?: number;
      readonly session: string;
      readonly member?: string;
      readonly node: string;
      readonly heartbeat: number;
      readonly version: number;
      /** The gateway's clock. */
      readonly time?: number;
    }
  | ({
      readonly type: "subscribed";
      readonly id?: number;
      readonly channel: string;
      readonly position: Position;
      readonly recovered: boolean;
    } & PresenceNews)
  | {
      readonly type: "unsubscribed";
      readonly id?: number;
      readonly channel: string;
      readonly code?: string;
    }
  | ({ readonly type: "event" } & Message)
  | ({ readonly type: "presence"; readonly channel: string } & PresenceNews)
  | {
      readonly type: "shown";
      readonly id?: number;
      readonly channel: string;
      readonly session?: string;
    }
  | {
      readonly type: "reset";
      readonly channel: string;
      readonly position: Position;
      readonly reason: string;
    }
  | Published
  | ({ readonly type: "history"; readonly id?: number } & Page)
  | {
      readonly type: "migrate";
      readonly transport: TransportName;
      readonly within?: number;
      readonly reason?: string;
    }
  | { readonly type: "expiring"; readonly in: number }
  | Goodbye
  | { readonly type: "ping"; readonly time?: number }
  | Refusal;

/** What `GET /api/route` answers: which transport this client is to use. */
export interface Route {
  readonly transport: TransportName;
  readonly url: string;
  readonly fallback?: { readonly transport: TransportName; readonly url: string };
  readonly cohort?: "new" | "control" | "rest";
  readonly bucket?: number;
  readonly version?: number;
  readonly component?: string;
}

/** Whether a channel can have this name. */
export function isChannelName(name: string): boolean {
  return /^[\w.:/@#=-]{1,200}$/.test(name) && !name.startsWith("crossfade:");
}

/** How two places lie to each other. Those of two epochs cannot be compared; all is ahead of none. */
export function compare(held: Position | undefined, told: Position): "ahead" | "held" | "foreign" {
  if (!held) return "ahead";
  const [[a, from], [b, to]] = [held.split("-"), told.split("-")] as [string[], string[]];
  if (a !== b) return "foreign";
  return Number(to) > Number(from) ? "ahead" : "held";
}

/** Whether a client comes back after this close code; codes that are not the gateway's are accidents. */
export function reconnects(code: number): boolean {
  return !/^(100[0279]|400[0167])$/.test(`${code}`);
}
