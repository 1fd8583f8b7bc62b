/**
 * The client as an application has it: does what the machine decides, and tells it what happens. It
 * decides nothing itself.
 */
import { Channel, type Events } from "./channel.js";
import { CrossfadeError } from "./error.js";
import { deadline, step } from "./machine.js";
import { difference, type PresenceChange, type View } from "./presence.js";
import { isChannelName, type Message, type Route, type TransportName } from "./protocol.js";
import { openSse } from "./sse.js";
import {
  begin,
  type ClientEvent,
  DEFAULTS,
  type Effect,
  type Happening,
  type Phase,
  type Request,
  type Settings,
  type State,
  type Wish,
} from "./state.js";
import { openWebSocket } from "./websocket.js";
import type { Ears, Wire } from "./wire.js";

export type Unsubscribe = () => void;

/** What the client uses of the world. Tests and unusual runtimes give their own. */
export interface Environment {
  readonly WebSocket: typeof WebSocket;
  readonly fetch: typeof fetch;
  now(): number;
  random(): number;
  id(): string;
  setTimeout(run: () => void, ms: number): unknown;
  clearTimeout(timer: never): void;
  /** Where it is remembered that WebSockets do not get through. */
  readonly storage?: Pick<Storage, "getItem" | "setItem" | "removeItem"> | undefined;
  /** The window and the document, where there are any. */
  readonly page?: { readonly window: EventTarget; readonly document: Document } | undefined;
  beacon?(url: string, body: string): void;
}

export interface ClientOptions extends Partial<Omit<Settings, "refreshable">> {
  /** The gateway's address, such as `https://events.example.com`. That of the page unless given. */
  readonly url?: string;
  /** Says who the client is, for as long as the token is valid. */
  readonly token?: string;
  /** Gets a token whenever one is needed: at the start, before it expires, after it was refused. */
  readonly getToken?: () => string | Promise<string>;
  readonly environment?: Partial<Environment>;
}

/** `connected`: events flow. `reconnecting`: they will, and nothing is lost. `closed`: see the event. */
export type ConnectionState = "idle" | "connecting" | "connected" | "reconnecting" | "closed";

export type EventOf<K extends ClientEvent["type"]> = Extract<ClientEvent, { type: K }>;

const BLOCKED = "crossfade:websocket-blocked";
/** Channels after which is looked which of them are still held. */
const SWEEP = 1000;
const BLOCKED_FOR = 3_600_000;

export class Client {
  readonly #world: Environment;
  readonly #base: string;
  readonly #getToken: (() => string | Promise<string>) | undefined;
  readonly #wires = new Map<number, Wire>();
  /** Those that somebody listens to, or is in. */
  readonly #channels = new Map<string, Channel>();
  /** Those that the application may still hold: the same name is the same object. */
  readonly #known = new Map<string, WeakRef<Channel>>();
  readonly #listeners = new Map<string, Set<(event: never) => void>>();
  readonly #waiting = new Map<number, PromiseWithResolversOf>();
  readonly #inputs: Happening[] = [];
  #state: State;
  #busy = false;
  #keys = 0;
  #timer: unknown;
  #timerAt = Number.POSITIVE_INFINITY;
  #leavePage: Unsubscribe | undefined;

  constructor(options: ClientOptions = {}) {
    const { url = "", token, getToken, environment, ...settings } = options;
    this.#world = { ...surroundings(), ...environment };
    this.#base = absolute(url).replace(/\/+$/, "");
    this.#getToken = getToken;
    const given = Object.entries(settings).filter(([, value]) => value !== undefined);
    const all = { ...DEFAULTS, ...Object.fromEntries(given), refreshable: !!getToken };
    this.#state = begin(all, this.#world.now(), token, this.#blocked());
  }

  get state(): ConnectionState {
    return STATES[this.#state.phase] ?? (this.#state.session ? "reconnecting" : "connecting");
  }

  /** What carries events now, if anything does. */
  get transport(): TransportName | undefined {
    const { link } = this.#state;
    return link?.readyAt === undefined ? undefined : link.transport;
  }

  /** This session's public name: how its own entry among a channel's members reads. */
  get member(): string | undefined {
    return this.#state.member;
  }

  /** A channel. It is subscribed to while somebody listens. */
  channel<E extends Events = Events>(name: string, options: { since?: string } = {}): Channel<E> {
    if (!isChannelName(name)) {
      throw new TypeError(
        `${JSON.stringify(name)} is no channel name: 1 to 200 of A-Z a-z 0-9 _ - . : / @ # =, not crossfade:…`,
      );
    }
    const channel = this.#channels.get(name) ?? this.#known.get(name)?.deref() ?? this.#make(name);
    if (options.since !== undefined) channel.startAt(options.since);
    return channel as unknown as Channel<E>;
  }

  on<K extends ClientEvent["type"]>(type: K, listener: (event: EventOf<K>) => void): Unsubscribe;
  /** Calls `listener` with every event. */
  on(type: "*", listener: (event: ClientEvent) => void): Unsubscribe;
  on(type: string, listener: (event: never) => void): Unsubscribe {
    const all = this.#listeners.get(type) ?? new Set();
    this.#listeners.set(type, all.add(listener));
    return () => void all.delete(listener);
  }

  /** Connects, or comes back after `close`. The first listener or publish does so by itself. */
  connect(): void {
    this.#stay();
    this.#happen({ type: "connect" });
  }

  /** Ends the connection. What waits for an answer fails with `closed`. */
  close(): void {
    this.#happen({ type: "close" });
    this.#leavePage?.();
    this.#leavePage = undefined;
  }

  /** Moves to the other transport while everything goes on. */
  migrate(to: TransportName, reason = "asked by the application"): void {
    this.#happen({ type: "move", to, reason });
  }

  #make(name: string): Channel {
    const channel: Channel = new Channel(name, {
      want: (wish) => this.#want(channel, wish),
      ask: (frame) => this.#ask(frame),
      id: () => this.#world.id(),
      report: (cause) => this.#report(cause),
    });
    // A page that shows one thing after the other must not keep them all.
    if (this.#known.size % SWEEP === SWEEP - 1) {
      for (const [name, held] of this.#known) if (!held.deref()) this.#known.delete(name);
    }
    this.#known.set(name, new WeakRef(channel));
    return channel;
  }

  #want(channel: Channel, wish: Wish | undefined): void {
    const { name } = channel;
    if (wish) {
      this.#stay();
      this.#channels.set(name, channel);
    } else this.#channels.delete(name);
    this.#happen({ type: "want", channel: name, wish });
  }

  #ask(frame: Omit<Request["frame"], "id">): Promise<never> {
    this.#stay();
    const key = ++this.#keys;
    return new Promise((resolve, reject) => {
      this.#waiting.set(key, { resolve, reject });
      this.#happen({ type: "request", key, frame });
    });
  }

  /** Lets the machine step. What happens while it is being done comes after it. */
  #happen(what: Happening): void {
    this.#inputs.push(what);
    if (this.#busy) return;
    this.#busy = true;
    for (let next = this.#inputs.shift(); next; next = this.#inputs.shift()) {
      const input = { ...next, now: this.#world.now(), dice: this.#world.random() };
      const [state, effects] = step(this.#state, input);
      this.#state = state;
      for (const effect of effects) this.#perform(effect);
    }
    this.#busy = false;
    this.#wind();
  }

  #perform(effect: Effect): void {
    switch (effect.do) {
      case "deliver":
        return this.#channels.get(effect.message.channel)?.take(effect.message as Message<never>);
      case "open":
        return this.#open(effect);
      case "send":
        return this.#wires.get(effect.link)?.send(effect.frames);
      case "close":
        this.#wires.get(effect.link)?.close();
        this.#wires.delete(effect.link);
        return;
      case "emit":
        return this.#emit(effect.event);
      case "presence":
        return this.#present(effect.channel, effect.before, effect.view);
      case "settle": {
        const { answer } = effect;
        const caller = this.#waiting.get(effect.key);
        this.#waiting.delete(effect.key);
        if (!("type" in answer) || answer.type !== "error") caller?.resolve(answer as never);
        else caller?.reject(new CrossfadeError(answer.code, answer.message));
        return;
      }
      case "fetch":
        if (effect.what === "token") this.#fetchToken(effect.ask);
        else this.#fetchRoute(effect.ask, effect.token);
        return;
      case "beacon": {
        const body = JSON.stringify(effect.frame);
        return this.#world.beacon?.(`${this.#base}/events/${effect.session}`, body);
      }
      case "remember":
        return this.#remember(effect.blocked);
    }
  }

  #open({ link, transport, path, token }: Effect & { do: "open" }): void {
    const ears: Ears = {
      opened: () => this.#happen({ type: "opened", link }),
      frame: (frame, at, posted) => {
        this.#happen({ type: "frame", link, frame, at, posted });
      },
      lost: (why) => this.#happen({ type: "lost", link, why }),
    };
    const url = this.#base + path;
    const { WebSocket, fetch } = this.#world;
    try {
      const wire =
        transport === "sse"
          ? openSse(fetch, url, ears, token)
          : openWebSocket(WebSocket, url, ears);
      this.#wires.set(link, wire);
    } catch (cause) {
      ears.lost({ reason: String(cause) });
    }
  }

  #emit(event: ClientEvent): void {
    for (const type of [event.type, "*"]) {
      for (const listener of [...(this.#listeners.get(type) ?? [])]) {
        this.#shield(() => listener(event as never));
      }
    }
  }

  #present(channel: string, before: View, view: View): void {
    const change: PresenceChange | undefined = difference(before, view);
    if (change) this.#channels.get(channel)?.presence.take(change);
  }

  async #fetchToken(ask: number): Promise<void> {
    try {
      this.#happen({ type: "token", ask, token: await this.#getToken?.() });
    } catch (cause) {
      this.#happen({ type: "token", ask, reason: `no token: ${cause}` });
    }
  }

  async #fetchRoute(ask: number, token: string | undefined): Promise<void> {
    let route: Route | undefined;
    try {
      const headers = new Headers(token ? { Authorization: `Bearer ${token}` } : []);
      const response = await this.#world.fetch(`${this.#base}/api/route`, { headers });
      const body: Route = response.ok ? await response.json() : undefined;
      if (["websocket", "sse"].includes(body?.transport) && body.url.startsWith("/")) route = body;
    } catch {
      // No answer is an answer too: both transports, the WebSocket first.
    }
    this.#happen({ type: "route", ask, route });
  }

  /** Has the next tick come when the machine needs it. */
  #wind(): void {
    const at = deadline(this.#state);
    if (at === this.#timerAt) return;
    this.#world.clearTimeout(this.#timer as never);
    this.#timerAt = at;
    if (at === Number.POSITIVE_INFINITY) return;
    const ms = Math.min(Math.max(0, Math.ceil(at - this.#world.now())), 2 ** 31 - 1);
    this.#timer = this.#world.setTimeout(() => {
      this.#timerAt = Number.POSITIVE_INFINITY;
      this.#happen({ type: "tick" });
    }, ms);
  }

  /** Hears what becomes of the page, until `close`. */
  #stay(): void {
    const { page } = this.#world;
    if (!page || this.#leavePage) return;
    const { window, document } = page;
    const heard = new AbortController();
    const on = (target: EventTarget, name: string, what: Happening, when = (_: Event) => true) =>
      target.addEventListener(name, (event) => when(event) && this.#happen(what), heard);
    on(window, "online", { type: "wake" });
    on(
      document,
      "visibilitychange",
      { type: "wake" },
      () => document.visibilityState === "visible",
    );
    on(window, "pagehide", { type: "hide" });
    on(document, "freeze", { type: "hide" });
    on(window, "pageshow", { type: "show" });
    on(document, "resume", { type: "show" });
    this.#leavePage = () => heard.abort();
  }

  /** A listener's mistake is the application's to see, and nobody else's to suffer. */
  #shield(run: () => void): void {
    try {
      run();
    } catch (cause) {
      this.#report(cause);
    }
  }

  #report(cause: unknown): void {
    this.#world.setTimeout(() => {
      throw cause;
    }, 0);
  }

  #blocked(): boolean {
    try {
      return this.#world.now() < Number(this.#world.storage?.getItem(BLOCKED));
    } catch {
      return false;
    }
  }

  #remember(blocked: boolean): void {
    const { storage, now } = this.#world;
    try {
      if (blocked) storage?.setItem(BLOCKED, String(now() + BLOCKED_FOR));
      else storage?.removeItem(BLOCKED);
    } catch {
      // A full or forbidden storage only costs the next page 2.5 s.
    }
  }
}

interface PromiseWithResolversOf {
  resolve(value: never): void;
  reject(cause: Error): void;
}

const STATES: Partial<Record<Phase, ConnectionState>> = {
  idle: "idle",
  connected: "connected",
  closed: "closed",
};

function absolute(url: string): string {
  return typeof location === "undefined" ? url : new URL(url || "/", location.href).href;
}

/** What the browser, or whatever runs this, has. */
function surroundings(): Environment {
  const page = typeof document === "undefined" ? undefined : { window, document };
  return {
    WebSocket: globalThis.WebSocket,
    fetch: (...request) => globalThis.fetch(...request),
    now: () => Date.now(),
    random: () => Math.random(),
    id: () => randomId(),
    setTimeout: (run, ms) => globalThis.setTimeout(run, ms),
    clearTimeout: (timer) => globalThis.clearTimeout(timer),
    storage: sessionStore(),
    page,
    ...(page && { beacon: (url: string, body: string) => void navigator.sendBeacon(url, body) }),
  };
}

function sessionStore(): Storage | undefined {
  try {
    return globalThis.sessionStorage;
  } catch {
    return;
  }
}

/** `crypto.randomUUID` is missing where a page came over plain HTTP. */
function randomId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
