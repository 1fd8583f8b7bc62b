/** `@crossfade/client`: channels that survive reconnects and changes of transport. */
import { Client, type ClientOptions } from "./client.js";

/** Makes a client. It connects when the first channel is listened to, or with `connect()`. */
export function createClient(options?: ClientOptions): Client {
  return new Client(options);
}

export type {
  AnyMessage,
  Channel,
  Events,
  HistoryOptions,
  Presence,
  PublishOptions,
} from "./channel.js";
export type {
  Client,
  ClientOptions,
  ConnectionState,
  Environment,
  EventOf,
  Unsubscribe,
} from "./client.js";
export { CrossfadeError } from "./error.js";
export type { PresenceChange } from "./presence.js";
export type { Member, Message, Page, Position, Published, TransportName } from "./protocol.js";
export type { ClientEvent } from "./state.js";
