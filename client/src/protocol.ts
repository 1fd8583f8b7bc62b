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
  | { readonly type: "ping" }
  | Refusal;

/** What `GET /api/route` answers: which transport this client is to use. */
export interface Route {
  readonly transport: TransportName;
  readonly url: string;
  readonly fallback?: { readonly transport: TransportName; readonly url: string };
  readonly cohort?: string;
  readonly version?: number;
}

/** Whether a channel can have this name. */
export function isChannelName(name: string): boolean {
  return /^[\w.:/@#=-]{1,200}$/.test(name) && !name.startsWith("crossfade:");
}

/** The two halves of a position, or none if the text is no position. */
export function readPosition(text: Position): { epoch: string; offset: number } | undefined {
  const found = /^([0-9a-z]+)-(\d+)$/.exec(text);
  return found ? { epoch: found[1] as string, offset: Number(found[2]) } : undefined;
}

/** How two places lie to each other. Those of two epochs cannot be compared. */
export function compare(held: Position, told: Position): "ahead" | "held" | "foreign" {
  const [a, b] = [readPosition(held), readPosition(told)];
  if (!a || !b || a.epoch !== b.epoch) return "foreign";
  return b.offset > a.offset ? "ahead" : "held";
}

/** Where a stream stands: the `id:` of its events, `?since=` of its address. */
export function writePositions(
  channels: readonly string[],
  at: (name: string) => Position | undefined,
) {
  const only = channels.length === 1 ? at(channels[0] as string) : undefined;
  if (only) return only;
  const known = channels.map((name) => [name, at(name)]).filter(([, position]) => position);
  return known.map(([name, position]) => `${name}~${position}`).join(",");
}

/** The same read back; a bare position is that of the stream's only channel. */
export function readPositions(text: string, channels: readonly string[]): [string, Position][] {
  if (readPosition(text)) return channels.length === 1 ? [[channels[0] as string, text]] : [];
  const pairs = text.split(",").map((pair) => pair.split("~"));
  return pairs.filter((pair): pair is [string, string] => !!pair[1] && !!readPosition(pair[1]));
}

/** Close codes after which a client does not come back by itself. */
const FINAL = [1000, 1002, 1007, 1009, 4000, 4001, 4006, 4007];

/** Whether a client comes back after this close code; codes that are not the gateway's are accidents. */
export function reconnects(code: number): boolean {
  return !FINAL.includes(code);
}
