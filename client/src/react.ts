/** React's bindings: a channel's events, who is in it, and how the connection is. */
import { useCallback, useEffect, useRef, useSyncExternalStore } from "react";
import type { AnyMessage, Channel, Events } from "./channel.js";
import type { Client, ConnectionState } from "./client.js";
import type { Member } from "./protocol.js";

/**
 * Calls `listener` with the channel's events while the component is there. The newest listener is
 * called; a new function does not subscribe anew.
 */
export function useChannel<E extends Events = Events>(
  client: Client,
  name: string,
  listener: (message: AnyMessage<E>) => void,
): Channel<E> {
  const channel = client.channel<E>(name);
  const newest = useRef(listener);
  useEffect(() => {
    newest.current = listener;
  });
  useEffect(() => channel.listen((message) => newest.current(message)), [channel]);
  return channel;
}

export interface PresenceView<S> {
  readonly members: readonly Member<S>[];
  readonly count: number;
}

/**
 * Who is in the channel. With a `state` this client is shown there as well, for as long as the
 * component is; with `null` or nothing it only looks on.
 */
export function usePresence<S = unknown>(
  client: Client,
  name: string,
  state?: S | null,
): PresenceView<S> {
  const { presence } = client.channel(name);
  const key = state == null ? undefined : JSON.stringify(state);
  useEffect(() => {
    if (key !== undefined) presence.enter(JSON.parse(key));
  }, [presence, key]);
  const shown = key !== undefined;
  useEffect(() => {
    if (shown) return () => presence.leave();
  }, [presence, shown]);
  const subscribe = useCallback((changed: () => void) => presence.watch(changed), [presence]);
  // The same array as long as nobody comes or goes.
  const members = useSyncExternalStore(
    subscribe,
    () => presence.members,
    () => presence.members,
  );
  return { members: members as readonly Member<S>[], count: presence.count };
}

/** How the connection is, for a sign on the page. */
export function useConnection(client: Client): ConnectionState {
  const subscribe = useCallback((changed: () => void) => client.on("*", changed), [client]);
  const state = () => client.state;
  return useSyncExternalStore(subscribe, state, state);
}
