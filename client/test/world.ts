/**
 * A model of everything around the machine: a gateway with logs, wires with delay that break, and a
 * clock that is turned by hand. It speaks the protocol and has no code of the client but the machine.
 */
import { deadline, step } from "../src/machine.js";
import type { ClientFrame, Message, ServerFrame, TransportName } from "../src/protocol.js";
import {
  begin,
  type ClientEvent,
  DEFAULTS,
  type Effect,
  type Happening,
  type Loss,
  type Settings,
  type State,
} from "../src/state.js";

interface Log {
  epoch: string;
  first: number;
  events: Message[];
  ids: Map<string, string>;
}

interface Wire {
  id: number;
  transport: TransportName;
  /** Frames and their loss arrive in order: the next not before this. */
  after: number;
  /** The same the other way. */
  before: number;
  /** Nothing passes any more, and nobody is told. */
  dark: boolean;
  client: boolean;
  server: boolean;
  session: string;
  cursors: Map<string, string>;
}

export class World {
  now = 1_000_000;
  up = true;
  /** What becomes of a WebSocket's handshake, and of a stream's request. */
  websockets: "pass" | "hang" | "refuse" = "pass";
  streams: "pass" | "hang" | "refuse" = "pass";
  unavailable = false;
  readonly logs = new Map<string, Log>();
  readonly delivered: Message[] = [];
  readonly events: ClientEvent[] = [];
  readonly answers = new Map<number, unknown>();
  /** Where the client first knew a channel to stand. */
  readonly began = new Map<string, string>();
  readonly effects: Effect[] = [];
  state: State;
  /** The most connections that were open at once outside a move. */
  extra = 0;
  route: "none" | "silent" = "none";
  tokens = 0;
  tokenFails = false;
  #wires = new Map<number, Wire>();
  #later: { at: number; order: number; run: () => void }[] = [];
  #order = 0;
  #ids = 0;
  #random: () => number;
  #tick = Number.POSITIVE_INFINITY;

  constructor(seed = 1, settings: Partial<Settings> = {}, token?: string) {
    this.#random = mulberry(seed);
    this.state = begin({ ...DEFAULTS, ...settings }, this.now, token);
    this.#beat();
  }

  /** Tells the machine, and does what it wants. */
  happen(what: Happening): void {
    const [state, effects] = step(this.state, { ...what, now: this.now, dice: this.#random() });
    this.state = state;
    for (const [channel, { position }] of state.channels) {
      if (position && !this.began.has(channel)) this.began.set(channel, position);
    }
    for (const effect of effects) this.#perform(effect);
    const open = [...this.#wires.values()].filter(({ client }) => client).length;
    this.extra = Math.max(this.extra, open - (state.next ? 2 : 1));
    this.#tick = deadline(state);
  }

  /** Lets time pass. */
  run(ms: number): void {
    const end = this.now + ms;
    for (let steps = 0; ; steps++) {
      if (steps > 20_000) throw new Error(`time stands still at ${this.now}`);
      this.#later.sort((a, b) => a.at - b.at || a.order - b.order);
      const next = this.#later[0];
      const at = Math.max(this.now, Math.min(next?.at ?? end, this.#tick));
      if (end < at) break;
      this.now = at;
      if (next && next.at <= at) {
        this.#later.shift();
        next.run();
      } else this.happen({ type: "tick" });
    }
    this.now = end;
  }

  log(channel: string): Log {
    let log = this.logs.get(channel);
    if (!log) {
      log = { epoch: `e${this.#ids++}`, first: 1, events: [], ids: new Map() };
      this.logs.set(channel, log);
    }
    return log;
  }

  /** Appends an event, once for each id. Returns where it is. */
  publish(
    channel: string,
    data: unknown,
    id = `m${this.#ids++}`,
    name?: string,
  ): [string, boolean] {
    const log = this.log(channel);
    const known = log.ids.get(id);
    if (known) return [known, true];
    const position = `${log.epoch}-${log.first + log.events.length}`;
    log.ids.set(id, position);
    log.events.push({ channel, id, ...(name && { name }), data, position, time: this.now + 5000 });
    for (const wire of this.#wires.values())
      if (wire.cursors.has(channel)) this.#feed(wire, channel);
    return [position, false];
  }

  /** The log is lost: another one begins. */
  forget(channel: string): void {
    const log = this.log(channel);
    this.logs.set(channel, { epoch: `e${this.#ids++}`, first: 1, events: [], ids: log.ids });
    for (const wire of this.#wires.values()) {
      if (wire.cursors.has(channel)) this.#reset(wire, channel, "epoch");
    }
  }

  /** What was appended so far can be had no more, but by those who have it. */
  trim(channel: string): void {
    const log = this.log(channel);
    log.first += log.events.length;
    log.events = [];
  }

  /** The connections break, and both sides notice. */
  cut(): void {
    for (const wire of this.#wires.values()) this.#end(wire, {});
  }

  /** The connections break, and nobody notices. */
  darken(): void {
    for (const wire of this.#wires.values()) {
      wire.dark = true;
      wire.server = false;
      wire.cursors.clear();
    }
  }

  goodbye(code: number, reconnect: boolean, after: number): void {
    for (const wire of this.#wires.values()) {
      this.#tell(wire, { type: "goodbye", code, reason: `told ${code}`, reconnect, after });
      this.#end(wire, wire.transport === "sse" ? {} : { code });
    }
  }

  tell(frame: ServerFrame): void {
    for (const wire of this.#wires.values()) this.#tell(wire, frame);
  }

  /** Connections that the gateway serves, and the client has open. */
  get living(): Wire[] {
    return [...this.#wires.values()].filter(
      ({ client, server, dark }) => client && server && !dark,
    );
  }

  soon(run: () => void, ms = 5 + this.#random() * 60): void {
    this.#at(this.now + ms, run);
  }

  #at(at: number, run: () => void): void {
    this.#later.push({ at, order: this.#order++, run });
  }

  #perform(effect: Effect): void {
    this.effects.push(effect);
    switch (effect.do) {
      case "open":
        return this.#open(effect);
      case "send": {
        const wire = this.#wires.get(effect.link);
        if (!wire?.client) throw new Error(`frames for a closed wire: ${JSON.stringify(effect)}`);
        const replies = wire.transport === "sse";
        // Both ways keep their order: a stream's POSTs go one after the other.
        wire.before = Math.max(wire.before, this.now + 2 + this.#random() * 60);
        return this.#at(wire.before, () => {
          if (!wire.dark && wire.server)
            for (const frame of effect.frames) this.#hear(wire, frame, replies);
        });
      }
      case "close": {
        const wire = this.#wires.get(effect.link);
        if (!wire) return;
        wire.client = false;
        return this.soon(() => {
          wire.server = false;
          wire.cursors.clear();
          this.#wires.delete(wire.id);
        });
      }
      case "deliver":
        this.delivered.push(effect.message);
        return;
      case "emit":
        this.events.push(effect.event);
        return;
      case "settle":
        if (this.answers.has(effect.key))
          throw new Error(`request ${effect.key} was answered twice`);
        this.answers.set(effect.key, effect.answer);
        return;
      case "fetch":
        if (effect.what === "token") {
          const token = this.tokenFails ? undefined : `t${++this.tokens}`;
          return this.soon(() => this.happen({ type: "fetched", ask: effect.ask, token }));
        }
        if (this.route === "silent") return;
        return this.soon(() => this.happen({ type: "fetched", ask: effect.ask }));
    }
  }

  #open({ link, transport, path }: Effect & { do: "open" }): void {
    const wire: Wire = {
      id: link,
      transport,
      after: this.now,
      before: this.now,
      dark: false,
      client: true,
      server: false,
      session: "",
      cursors: new Map(),
    };
    this.#wires.set(link, wire);
    const fate = transport === "sse" ? this.streams : this.websockets;
    if (fate === "hang") return;
    this.soon(() => {
      if (!wire.client || wire.dark) return;
      if (!this.up || fate === "refuse") {
        return this.#end(wire, transport === "sse" ? { status: 502 } : { code: 1006 });
      }
      const query = new URL(path, "http://gateway").searchParams;
      if (query.getAll("channel").includes("forbidden")) {
        return this.#end(wire, { status: 403, error: "forbidden" });
      }
      wire.server = true;
      this.#arrive(wire, () => this.happen({ type: "opened", link }));
      if (transport === "sse") this.#stream(wire, query);
    });
  }

  #stream(wire: Wire, query: URLSearchParams): void {
    const channels = query.getAll("channel");
    const since = query.get("since") ?? "";
    const place = new Map(
      since.includes("~")
        ? since.split(",").map((pair) => pair.split("~") as [string, string])
        : [[channels[0] as string, since]],
    );
    const start = channels.map(
      (channel) => [channel, this.#start(channel, place.get(channel))] as const,
    );
    this.#greet(wire, query.get("session") ?? undefined, query.has("overlap"), () =>
      channels.length === 1
        ? (start[0]?.[1].cursor as string)
        : start.map(([channel, { cursor }]) => `${channel}~${cursor}`).join(","),
    );
    for (const [channel, { cursor, lost }] of start) {
      wire.cursors.set(channel, cursor);
      if (lost) this.#reset(wire, channel, lost);
      this.#feed(wire, channel);
    }
  }

  #greet(wire: Wire, session: string | undefined, overlap: boolean, at?: () => string): void {
    wire.session = session ?? `s${this.#ids++}`;
    for (const other of [...this.#wires.values()]) {
      if (other === wire || other.session !== wire.session || !other.server) continue;
      const move = () => {
        if (!other.server) return;
        this.#tell(other, {
          type: "goodbye",
          code: 4007,
          reason: "moved",
          reconnect: false,
          after: 0,
        });
        this.#end(other, other.transport === "sse" ? {} : { code: 4007 });
      };
      if (overlap) this.soon(move, 10_000);
      else move();
    }
    const welcome = { session: wire.session, node: "n", heartbeat: 25_000, version: 1 };
    this.#tell(wire, { type: "welcome", ...welcome }, at?.());
  }

  /** Where a reader begins that comes back with `since`, and what it has missed for good. */
  #start(channel: string, since: string | undefined): { cursor: string; lost?: string } {
    const log = this.log(channel);
    const head = `${log.epoch}-${log.first + log.events.length - 1}`;
    if (!since) return { cursor: head };
    const [epoch, offset] = since.split("-") as [string, string];
    if (epoch !== log.epoch) return { cursor: head, lost: "epoch" };
    if (Number(offset) + 1 < log.first) return { cursor: head, lost: "expired" };
    return { cursor: since };
  }

  #reset(wire: Wire, channel: string, reason: string): void {
    const { cursor } = this.#start(channel, undefined);
    wire.cursors.set(channel, cursor);
    this.#tell(wire, { type: "reset", channel, position: cursor, reason });
  }

  /** Everything behind the cursor goes out. */
  #feed(wire: Wire, channel: string): void {
    const log = this.log(channel);
    const held = Number(wire.cursors.get(channel)?.split("-")[1]);
    for (const event of log.events.slice(Math.max(0, held - log.first + 1))) {
      wire.cursors.set(channel, event.position);
      this.#tell(wire, { type: "event", ...event });
    }
  }

  #hear(wire: Wire, frame: ClientFrame, posted: boolean): void {
    const reply = (answer: ServerFrame) =>
      posted
        ? this.soon(() => {
            if (wire.client && !wire.dark) {
              this.happen({ type: "frame", link: wire.id, frame: answer, posted: true });
            }
          })
        : this.#tell(wire, answer);
    if (frame.type === "pong" || frame.type === "report" || frame.type === "goodbye") return;
    if (frame.type === "connect") {
      if (!wire.session) this.#greet(wire, frame.session, !!frame.overlap);
      return;
    }
    const { id, channel } = frame;
    const error = (code: string) => reply({ type: "error", id, code, message: code });
    switch (frame.type) {
      case "subscribe": {
        if (this.unavailable) return error("unavailable");
        if (channel === "forbidden") return error("forbidden");
        if (wire.cursors.has(channel)) return error("already_subscribed");
        const { cursor, lost } = this.#start(channel, frame.since);
        const position = this.#start(channel, undefined).cursor;
        wire.cursors.set(channel, cursor);
        reply({ type: "subscribed", id, channel, position, recovered: !lost });
        if (lost) this.#reset(wire, channel, lost);
        return this.#feed(wire, channel);
      }
      case "unsubscribe":
        if (!wire.cursors.delete(channel)) return error("not_subscribed");
        return reply({ type: "unsubscribed", id, channel });
      case "publish": {
        if (this.unavailable) return error("unavailable");
        const { message_id, data, name } = frame;
        const [position, duplicate] = this.publish(channel, data, message_id, name);
        return reply({ type: "published", id, message_id, position, duplicate });
      }
      case "history": {
        const position = this.#start(channel, undefined).cursor;
        return reply({ type: "history", id, channel, events: [], position, complete: false });
      }
      case "presence":
        return reply({ type: "shown", id, channel });
    }
  }

  #tell(wire: Wire, frame: ServerFrame, at?: string): void {
    if (!wire.server) return;
    this.#arrive(wire, () =>
      this.happen({ type: "frame", link: wire.id, frame, ...(at !== undefined && { at }) }),
    );
  }

  #arrive(wire: Wire, run: () => void): void {
    wire.after = Math.max(wire.after, this.now + 2 + this.#random() * 40);
    this.#at(wire.after, () => wire.client && !wire.dark && run());
  }

  #end(wire: Wire, why: Loss): void {
    wire.server = false;
    wire.cursors.clear();
    this.#arrive(wire, () => this.happen({ type: "lost", link: wire.id, why }));
  }

  #beat(): void {
    for (const wire of this.#wires.values()) if (wire.session) this.#tell(wire, { type: "ping" });
    this.soon(() => this.#beat(), 25_000);
  }
}

function mulberry(seed: number): () => number {
  let a = seed | 0;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
