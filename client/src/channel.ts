/** One channel as an application has it: listeners, an iterator, presence, publish and history. */
import { CrossfadeError } from "./error.js";
import type { PresenceChange } from "./presence.js";
import type { Member, Message, Page, Published } from "./protocol.js";
import type { Request, Wish } from "./state.js";

/** What a channel's events carry, by their names: `{ created: Order; deleted: { id: string } }`. */
// biome-ignore lint/suspicious/noExplicitAny: an interface without an index signature has to fit.
export type Events = Record<string, any>;

export type Unsubscribe = () => void;

/** An event of any name of `E`. */
export type AnyMessage<E extends Events> = Message<E[keyof E]>;

export interface PublishOptions<N> {
  readonly name?: N;
  /** The same id is the same event: give one to repeat a publish of your own safely. */
  readonly id?: string;
}

export interface HistoryOptions {
  /** Behind this position; from the oldest kept event on without it. */
  readonly since?: string;
  readonly limit?: number;
}

export interface Channel<E extends Events = Events> extends AsyncIterable<AnyMessage<E>> {
  readonly name: string;
  /** Who is in the channel, as long as somebody watches. */
  readonly presence: Presence;
  /** Calls `listener` with the events of this name. */
  on<K extends keyof E & string>(
    name: K,
    listener: (data: E[K], message: Message<E[K]>) => void,
  ): Unsubscribe;
  /** Calls `listener` with every event. */
  listen(listener: (message: AnyMessage<E>) => void): Unsubscribe;
  /**
   * The events as an async iterator, from now on. It holds `buffer` events for a loop that is slower
   * than the channel; with one more it ends with a `CrossfadeError` of code `too_slow`, so that the
   * loop learns that it missed something and can begin anew.
   */
  events(options?: { buffer?: number }): AsyncIterableIterator<AnyMessage<E>>;
  /**
   * Appends an event. Resolves when the gateway has stored it; until then it is sent again over every
   * reconnect, with the same id, so that it is stored once.
   */
  publish<K extends keyof E & string>(data: E[K], options?: PublishOptions<K>): Promise<Published>;
  /** Reads the channel's log without subscribing. */
  history(options?: HistoryOptions): Promise<Page<E[keyof E]>>;
}

/** Who is in a channel. */
export interface Presence<S = unknown> {
  /** Those who are there, as far as known: empty before somebody watches, and in very large channels. */
  readonly members: readonly Member<S>[];
  /** How many are there. */
  readonly count: number;
  /** Calls `watcher` with everything that changes; the first time with all who are there. */
  watch(watcher: (change: PresenceChange<S>) => void): Unsubscribe;
  /** Calls `listener` with each member that joins, leaves or changes its state. */
  on(what: "join" | "leave" | "update", listener: (member: Member<S>) => void): Unsubscribe;
  /** Shows this session in the channel with a state, or changes it. */
  enter(state: S): void;
  /** Takes this session away. */
  leave(): void;
}

/** What a channel asks of its client. */
export interface Patron {
  want(wish: Wish | undefined): void;
  // biome-ignore lint/suspicious/noExplicitAny: the answer to what was asked.
  ask(frame: Omit<Request["frame"], "id"> & object): Promise<any>;
  id(): string;
  /** A listener's own mistake. */
  report(cause: unknown): void;
}

/** A channel as its client has it. */
export interface Kept extends Channel {
  take(message: Message): void;
  see(change: PresenceChange): void;
  /** Where the next subscription begins. */
  startAt(position: string): void;
}

const NOTHING: PresenceChange = { joined: [], updated: [], left: [], members: [], count: 0 };
const KEYS = { join: "joined", leave: "left", update: "updated" } as const;

/** A set of listeners. `changed` is called when the first comes and the last goes. */
export function audience<T>(changed: () => void, report: (cause: unknown) => void) {
  const all = new Set<(told: T) => void>();
  return {
    all,
    tell: (told: T) => {
      for (const each of [...all]) {
        try {
          each(told);
        } catch (cause) {
          report(cause);
        }
      }
    },
    add: (listener: (told: T) => void): Unsubscribe => {
      // A function of its own, so that the same listener may be given twice.
      const own = (told: T) => listener(told);
      all.add(own);
      if (all.size === 1) changed();
      return () => {
        if (all.delete(own) && !all.size) changed();
      };
    },
  };
}

export function makeChannel(name: string, { want, ask, id, report }: Patron): Kept {
  let since: string | undefined;
  let shown: unknown;
  let there = NOTHING;

  /** Tells the client what is wanted of the channel now. */
  const wish = () => {
    const presence = watchers.all.size > 0;
    const wanted = presence || listeners.all.size || shown != null;
    want(wanted ? { presence, state: shown, since } : undefined);
    if (!presence) there = NOTHING;
    since = undefined;
  };
  const listeners = audience<Message>(wish, report);
  const watchers = audience<PresenceChange>(wish, report);

  const watch: Presence["watch"] = (watcher) => {
    const stop = watchers.add(watcher);
    if (there !== NOTHING) watcher({ ...there, joined: there.members, updated: [], left: [] });
    return stop;
  };
  const enter = (state: unknown) => {
    shown = state;
    wish();
  };
  const events: Channel["events"] = ({ buffer = 1000 } = {}) => {
    type Next = IteratorResult<Message, undefined>;
    const held: Message[] = [];
    let waiting: ((next: Next) => void) | undefined;
    let over = false;
    let missed = false;
    const give = (next: Next) => {
      waiting?.(next);
      waiting = undefined;
    };
    const end = async (): Promise<Next> => {
      const next = { done: true, value: undefined } as const;
      over = true;
      stop();
      give(next);
      return next;
    };
    const stop = listeners.add((value) => {
      if (waiting) give({ value });
      else if (held.length < buffer) held.push(value);
      else {
        missed = true;
        stop();
      }
    });
    return {
      // The events held come first, then the end.
      next: async () => {
        const value = over ? undefined : held.shift();
        if (value) return { value };
        if (over || missed) {
          const told = over;
          await end();
          if (told) return { done: true, value: undefined };
          const message = `the loop is slower than the channel: more than ${buffer} events wait`;
          throw new CrossfadeError("too_slow", message);
        }
        return new Promise((resolve) => {
          waiting = resolve;
        });
      },
      return: end,
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  };
  const channel: Kept = {
    name,
    presence: {
      get members() {
        return there.members;
      },
      get count() {
        return there.count;
      },
      watch,
      on: (what, listener) => watch((change) => change[KEYS[what]].forEach(listener)),
      enter,
      leave: () => enter(null),
    },
    on: (name, listener) =>
      channel.listen((message) => {
        if (message.name === name) listener(message.data, message);
      }),
    listen: listeners.add,
    events,
    [Symbol.asyncIterator]: events,
    publish: (data, { name: event, id: message_id = id() } = {}) =>
      ask({ type: "publish", channel: name, name: event, data: data ?? null, message_id } as never),
    history: (options) => ask({ type: "history", channel: name, ...options }),
    take: listeners.tell,
    see: (change) => {
      there = change;
      watchers.tell(change);
    },
    startAt: (position) => {
      since = position;
    },
  };
  return channel;
}
