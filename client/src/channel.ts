/** One channel as an application has it: listeners, an iterator, presence, publish and history. */
import type { PresenceChange } from "./presence.js";
import type { Member, Message, Page, Published } from "./protocol.js";
import { Queue } from "./queue.js";
import type { Request, Wish } from "./state.js";

/** What a channel's events carry, by their names: `{ created: Order; deleted: { id: string } }`. */
// biome-ignore lint/suspicious/noExplicitAny: an interface without an index signature has to fit.
export type Events = Record<string, any>;

export type Stop = () => void;

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

/** What a channel asks of its client. */
export interface Patron {
  want(wish: Wish | undefined): void;
  ask(frame: Omit<Request["frame"], "id">): Promise<never>;
  id(): string;
  /** A listener's own mistake. */
  report(cause: unknown): void;
}

type Listener = (message: Message<never>) => void;

export class Channel<E extends Events = Events> {
  /** Who is in the channel, as long as somebody watches. */
  readonly presence: Presence;
  readonly #patron: Patron;
  readonly #listeners = new Set<Listener>();
  #since: string | undefined;

  constructor(
    readonly name: string,
    patron: Patron,
  ) {
    this.#patron = patron;
    this.presence = new Presence(() => this.#wish(), patron.report);
  }

  /** Calls `listener` with the events of this name. */
  on<K extends keyof E & string>(
    name: K,
    listener: (data: E[K], message: Message<E[K]>) => void,
  ): Stop {
    return this.listen((message) => {
      if (message.name === name) listener(message.data as E[K], message as Message<E[K]>);
    });
  }

  /** Calls `listener` with every event. */
  listen(listener: (message: AnyMessage<E>) => void): Stop {
    // A function of its own, so that the same listener may be given twice.
    const own: Listener = (message) => listener(message);
    this.#listeners.add(own);
    if (this.#listeners.size === 1) this.#wish();
    return () => {
      if (this.#listeners.delete(own) && !this.#listeners.size) this.#wish();
    };
  }

  /**
   * The events as an async iterator, from now on. It holds `buffer` events for a loop that is slower
   * than the channel; with one more it ends with a `CrossfadeError` of code `too_slow`, so that the
   * loop learns that it missed something and can begin anew.
   */
  events({ buffer = 1000 }: { buffer?: number } = {}): AsyncIterableIterator<AnyMessage<E>> {
    const queue = new Queue<AnyMessage<E>>(buffer, () => stop());
    const stop = this.listen((message) => queue.push(message));
    return queue;
  }

  [Symbol.asyncIterator](): AsyncIterableIterator<AnyMessage<E>> {
    return this.events();
  }

  /**
   * Appends an event. Resolves when the gateway has stored it; until then it is sent again over every
   * reconnect, with the same id, so that it is stored once.
   */
  publish<K extends keyof E & string>(
    data: E[K],
    { name, id }: PublishOptions<K> = {},
  ): Promise<Published> {
    return this.#patron.ask({
      type: "publish",
      channel: this.name,
      name,
      data: data === undefined ? null : data,
      message_id: id ?? this.#patron.id(),
    } as never);
  }

  /** Reads the channel's log without subscribing. */
  history({ since, limit }: HistoryOptions = {}): Promise<Page<E[keyof E]>> {
    return this.#patron.ask({
      type: "history",
      channel: this.name,
      since,
      limit,
    } as never);
  }

  /** @internal Where the next subscription begins. */
  startAt(position: string): void {
    this.#since = position;
  }

  /** @internal */
  take(message: Message<never>): void {
    for (const listener of [...this.#listeners]) {
      try {
        listener(message);
      } catch (cause) {
        this.#patron.report(cause);
      }
    }
  }

  /** Tells the client what is wanted of the channel now. */
  #wish(): void {
    const { watched, state } = this.presence;
    const wanted = this.#listeners.size || watched || state != null;
    const since = this.#since;
    this.#patron.want(
      wanted
        ? { presence: watched, ...(state != null && { state }), ...(since && { since }) }
        : undefined,
    );
    if (!wanted) this.presence.forget();
    this.#since = undefined;
  }
}

/** Who is in a channel. */
export class Presence<S = unknown> {
  readonly #wish: () => void;
  readonly #report: (cause: unknown) => void;
  readonly #watchers = new Set<(change: PresenceChange<S>) => void>();
  #now: PresenceChange<S> = NOTHING;
  /** @internal What this session shows of itself. */
  state: S | null | undefined;

  constructor(wish: () => void, report: (cause: unknown) => void) {
    this.#wish = wish;
    this.#report = report;
  }

  /** Those who are there, as far as known: empty before somebody watches, and in very large channels. */
  get members(): readonly Member<S>[] {
    return this.#now.members;
  }

  /** How many are there. */
  get count(): number {
    return this.#now.count;
  }

  /** @internal */
  get watched(): boolean {
    return this.#watchers.size > 0;
  }

  /** Calls `watcher` with everything that changes; the first time with all who are there. */
  watch(watcher: (change: PresenceChange<S>) => void): Stop {
    const own = (change: PresenceChange<S>) => watcher(change);
    this.#watchers.add(own);
    if (this.#watchers.size === 1) this.#wish();
    else if (this.#now !== NOTHING)
      watcher({ ...this.#now, joined: this.members, updated: [], left: [] });
    return () => {
      if (!this.#watchers.delete(own) || this.#watchers.size) return;
      this.#wish();
      this.forget();
    };
  }

  /** Calls `listener` with each member that joins, leaves or changes its state. */
  on(what: "join" | "leave" | "update", listener: (member: Member<S>) => void): Stop {
    const key = ({ join: "joined", leave: "left", update: "updated" } as const)[what];
    return this.watch((change) => change[key].forEach(listener));
  }

  /** Shows this session in the channel with a state, or changes it. */
  enter(state: S): void {
    this.state = state;
    this.#wish();
  }

  /** Takes this session away. */
  leave(): void {
    this.state = null;
    this.#wish();
  }

  /** @internal */
  take(change: PresenceChange): void {
    this.#now = change as PresenceChange<S>;
    for (const watcher of [...this.#watchers]) {
      try {
        watcher(this.#now);
      } catch (cause) {
        this.#report(cause);
      }
    }
  }

  /** @internal Nobody watches: what was known goes stale. */
  forget(): void {
    this.#now = NOTHING;
  }
}

const NOTHING: PresenceChange<never> = { joined: [], updated: [], left: [], members: [], count: 0 };
