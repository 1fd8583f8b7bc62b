/** `@crossfade/client`: channels that survive reconnects and changes of transport. */
export type {
  AnyMessage,
  Channel,
  Events,
  HistoryOptions,
  Presence,
  PublishOptions,
  Unsubscribe,
} from "./channel.js";
export {
  type Client,
  type ClientOptions,
  type ConnectionState,
  createClient,
  type Environment,
  type EventOf,
} from "./client.js";
export { CrossfadeError } from "./error.js";
export type { PresenceChange } from "./presence.js";
export type { Member, Message, Page, Position, Published, TransportName } from "./protocol.js";
export type { ClientEvent } from "./state.js";
