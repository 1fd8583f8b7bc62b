/**
 * The client as an application has it: does what the machine decides, and tells it what happens. It
 * decides nothing itself.
 */
import {
  audience,
  type Channel,
  type Events,
  type Kept,
  makeChannel,
  type Unsubscribe,
} from "./channel.js";
import { CrossfadeError } from "./error.js";
import { deadline, step } from "./machine.js";
import { isChannelName, type Route, type TransportName } from "./protocol.js";
import { openSse } from "./sse.js";
import {
  begin,
  type ClientEvent,
  DEFAULTS,
  type Effect,
  type Happening,
  NEVER,
  type Phase,
  type Settings,
} from "./state.js";
import { openWebSocket } from "./websocket.js";
import type { Ears, Wire } from "./wire.js";

/** What the client uses of the world. Tests and unusual runtimes give their own. */
export interface Environment {
  readonly WebSocket: typeof WebSocket;
  readonly EventSource: typeof EventSource;
  readonly fetch: typeof fetch;
  now(): number;
  random(): number;
  id(): string;
  setTimeout(run: () => void, ms: number): unknown;
  clearTimeout(timer: never): void;
  /** Where it is remembered who this is, and that WebSockets do not get through. */
  readonly storage?: Pick<Storage, "getItem" | "setItem" | "removeItem"> | undefined;
  /** The window, or a worker's global, and the document, where there are any. */
  readonly page?: { readonly window: EventTarget; readonly document?: Document } | undefined;
  beacon?: ((url: string, body: string) => void) | undefined;
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

export interface Client {
  readonly state: ConnectionState;
  /** What carries events now, if anything does. */
  readonly transport: TransportName | undefined;
  /** This session's public name: how its own entry among a channel's members reads. */
  readonly member: string | undefined;
  /** A channel. It is subscribed to while somebody listens. */
  channel<E extends Events = Events>(name: string, options?: { since?: string }): Channel<E>;
  on<K extends ClientEvent["type"]>(type: K, listener: (event: EventOf<K>) => void): Unsubscribe;
  /** Calls `listener` with every event. */
  on(type: "*", listener: (event: ClientEvent) => void): Unsubscribe;
  /** Connects, or comes back after `close`. The first listener or publish does so by itself. */
  connect(): void;
  /** Ends the connection. What waits for an answer fails with `closed`. */
  close(): void;
  /** Moves to the other transport while everything goes on. */
  migrate(to: TransportName, reason?: string): void;
}

const BLOCKED = "crossfade:websocket-blocked";
const UNIT = "crossfade:unit";
const BLOCKED_FOR = 3_600_000;
/** Channels after which is looked which of them are still held. */
const SWEEP = 1000;
const STATES: Partial<Record<Phase, ConnectionState>> = {
  idle: "idle",
  connected: "connected",
  closed: "closed",
};

/** Makes a client. It connects when the first channel is listened to, or with `connect()`. */
export function createClient(options: ClientOptions = {}): Client {
  const { url = "", token, getToken, environment, ...settings } = options;
  const world = { ...surroundings(), ...environment };
  const { storage, page, now } = world;
  const here = globalThis.location?.href;
  const base = (here ? new URL(url || "/", here).href : url).replace(/\/+$/, "");

  const wires = new Map<number, Wire>();
  /** Those that somebody listens to, or is in. */
  const channels = new Map<string, Kept>();
  /** Those that the application may still hold: the same name is the same object. */
  const held = new Map<string, WeakRef<Kept>>();
  const waiting = new Map<number, [(value: unknown) => void, (cause: Error) => void]>();
  const inputs: Happening[] = [];
  let busy = false;
  let keys = 0;
  let timer: unknown;
  let timerAt = NEVER;
  let leavePage: Unsubscribe | undefined;

  /** A full or forbidden storage only costs what it would have saved. */
  const stored = <T>(use: (store: NonNullable<typeof storage>) => T): T | undefined => {
    try {
      return storage && use(storage);
    } catch {
      return;
    }
  };
  const unit = stored((store) => {
    const known = store.getItem(UNIT) ?? world.id();
    store.setItem(UNIT, known);
    return known;
  });
  const blocked = now() < Number(stored((store) => store.getItem(BLOCKED)));
  const all = { ...DEFAULTS, ...defined(settings), refreshable: !!getToken };
  let state = begin(all, now(), token, blocked, unit);

  /** A listener's mistake is the application's to see, and nobody else's to suffer. */
  const report = (cause: unknown) => {
    world.setTimeout(() => {
      throw cause;
    }, 0);
  };
  const listeners = audience<ClientEvent>(() => {}, report);

  /** Lets the machine step. What happens while it is being done comes after it. */
  const happen = (what: Happening) => {
    inputs.push(what);
    if (busy) return;
    busy = true;
    for (let next = inputs.shift(); next; next = inputs.shift()) {
      const [after, effects] = step(state, { ...next, now: now(), dice: world.random() });
      state = after;
      for (const effect of effects) perform(effect);
    }
    busy = false;
    wind();
  };

  /** Has the next tick come when the machine needs it. */
  const wind = () => {
    const at = deadline(state);
    if (at === timerAt) return;
    world.clearTimeout(timer as never);
    timerAt = at;
    if (at === NEVER) return;
    const tick = () => {
      timerAt = NEVER;
      happen({ type: "tick" });
    };
    timer = world.setTimeout(tick, Math.min(Math.max(0, Math.ceil(at - now())), 2 ** 31 - 1));
  };

  const perform = (effect: Effect): void => {
    switch (effect.do) {
      case "deliver":
        return channels.get(effect.message.channel)?.take(effect.message);
      case "presence":
        return channels.get(effect.channel)?.see(effect.change);
      case "emit":
        return listeners.tell(effect.event);
      case "open":
        return open(effect);
      case "send":
        return wires.get(effect.link)?.send(effect.frames);
      case "close":
        wires.get(effect.link)?.close();
        wires.delete(effect.link);
        return;
      case "settle": {
        const { answer, key } = effect;
        const [resolve, reject] = waiting.get(key) ?? [];
        waiting.delete(key);
        if ("code" in answer) reject?.(new CrossfadeError(answer.code, answer.message));
        else resolve?.(answer);
        return;
      }
      case "fetch":
        fetched(effect.what, effect.ask);
        return;
      case "beacon":
        return world.beacon?.(`${base}/events/${effect.session}`, JSON.stringify(effect.frames));
      case "remember":
        stored((store) =>
          effect.blocked
            ? store.setItem(BLOCKED, `${now() + BLOCKED_FOR}`)
            : store.removeItem(BLOCKED),
        );
    }
  };

  const open = ({ link, transport, path }: Effect & { do: "open" }) => {
    const ears: Ears = {
      opened: () => happen({ type: "opened", link }),
      hear: (text, at) => {
        try {
          happen({ type: "frame", link, frame: JSON.parse(text), at });
        } catch (cause) {
          ears.lost({ reason: `${cause}` });
        }
      },
      answer: (frame) => happen({ type: "frame", link, frame, posted: true }),
      lost: (why) => happen({ type: "lost", link, why }),
    };
    try {
      const { WebSocket, EventSource, fetch } = world;
      const wire =
        transport === "sse"
          ? openSse(EventSource, fetch, base + path, ears)
          : openWebSocket(WebSocket, base + path, ears);
      wires.set(link, wire);
    } catch (cause) {
      ears.lost({ reason: `${cause}` });
    }
  };

  const fetched = async (what: "token" | "route", ask: number) => {
    const type = "fetched";
    try {
      if (what === "token") return happen({ type, ask, token: await getToken?.() });
      const { token } = state;
      const headers = new Headers(token ? { Authorization: `Bearer ${token}` } : []);
      const { transport } = state.link ?? state.route ?? {};
      const who = `?${unit ? `client=${unit}&` : ""}transport=${transport ?? ""}`;
      const response = await world.fetch(`${base}/api/route${who}`, { headers });
      const route: Route | undefined = response.ok ? await response.json() : undefined;
      // No answer is an answer too: both transports, the WebSocket first.
      const known = /^(websocket|sse)$/.test(`${route?.transport}`) && route?.url[0] === "/";
      happen({ type, ask, route: known ? route : undefined });
    } catch (cause) {
      happen({ type, ask, reason: `no ${what}: ${cause}` });
    }
  };

  /** Hears what becomes of the page, until `close`. */
  const stay = () => {
    if (!page || leavePage) return;
    const { window, document } = page;
    const heard = new AbortController();
    const on = (target: EventTarget | undefined, name: string, type: "wake" | "hide" | "show") =>
      target?.addEventListener?.(
        name,
        () => (type === "wake" && document?.hidden) || happen({ type }),
        heard,
      );
    on(window, "online", "wake");
    on(document, "visibilitychange", "wake");
    on(window, "pagehide", "hide");
    on(document, "freeze", "hide");
    on(window, "pageshow", "show");
    on(document, "resume", "show");
    leavePage = () => heard.abort();
  };

  const make = (name: string): Kept => {
    const channel = makeChannel(name, {
      want: (wish) => {
        if (wish) {
          stay();
          channels.set(name, channel);
        } else channels.delete(name);
        happen({ type: "want", channel: name, wish });
      },
      ask: (frame) => {
        stay();
        const key = ++keys;
        return new Promise((...both) => {
          waiting.set(key, both);
          happen({ type: "request", key, frame });
        });
      },
      id: world.id,
      report,
    });
    // A page that shows one thing after the other must not keep them all.
    if (held.size % SWEEP === SWEEP - 1) {
      for (const [name, each] of held) if (!each.deref()) held.delete(name);
    }
    held.set(name, new WeakRef(channel));
    return channel;
  };

  return {
    get state() {
      return STATES[state.phase] ?? (state.session ? "reconnecting" : "connecting");
    },
    get transport() {
      return state.link?.readyAt ? state.link.transport : undefined;
    },
    get member() {
      return state.member;
    },
    channel: <E extends Events>(name: string, { since }: { since?: string } = {}) => {
      if (!isChannelName(name)) {
        const rule = "1 to 200 of A-Z a-z 0-9 _ - . : / @ # =, not crossfade:…";
        throw new TypeError(`${JSON.stringify(name)} is no channel name: ${rule}`);
      }
      const channel = channels.get(name) ?? held.get(name)?.deref() ?? make(name);
      if (since) channel.startAt(since);
      return channel as unknown as Channel<E>;
    },
    on: (type: string, listener: (event: never) => void) =>
      listeners.add((event) => (type === "*" || type === event.type) && listener(event as never)),
    connect: () => {
      stay();
      happen({ type: "connect" });
    },
    close: () => {
      happen({ type: "close" });
      leavePage?.();
      leavePage = undefined;
    },
    migrate: (to, reason = "asked by the application") => happen({ type: "move", to, reason }),
  };
}

/** Options that are given as `undefined` are not given. */
function defined(settings: object): object {
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
}

/** What the browser, or whatever runs this, has. */
function surroundings(): Environment {
  const { WebSocket, EventSource, document, navigator } = globalThis;
  let storage: Storage | undefined;
  try {
    storage = globalThis.localStorage;
  } catch {
    // A page may be forbidden to have any.
  }
  return {
    WebSocket,
    EventSource,
    fetch: (...request) => fetch(...request),
    now: Date.now,
    random: Math.random,
    // `crypto.randomUUID` is missing where a page came over plain HTTP.
    id: () =>
      Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) =>
        byte.toString(16).padStart(2, "0"),
      ).join(""),
    setTimeout: (run, ms) => setTimeout(run, ms),
    clearTimeout: (timer) => clearTimeout(timer),
    storage,
    page: { window: globalThis as unknown as EventTarget, document },
    beacon: (url, body) => navigator?.sendBeacon?.(url, body),
  };
}
