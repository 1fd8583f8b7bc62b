/**
 * How a client connects, moves between transports, and comes back: the whole of its behaviour.
 *
 * `step` reads no clock, draws no dice and opens nothing: the same state and input lead to the same. It
 * takes the state over and gives it back changed; whoever calls it does the effects in order, and calls
 * again with what happens, at `deadline` at the latest.
 */
import {
  again,
  ask,
  begins,
  flush,
  hear,
  probe,
  reveal,
  say,
  settle,
  sync,
} from "./conversation.js";
import {
  type ClientFrame,
  reconnects,
  type Route,
  type ServerFrame,
  type TransportName,
} from "./protocol.js";
import { noStats, summary, synchronised } from "./report.js";
import {
  type Alarm,
  type Effect,
  type Happening,
  type Input,
  type Link,
  type Loss,
  NEVER,
  type Phase,
  type State,
} from "./state.js";
import { close, count, dice, effects, emit, links, now, s, send, turn } from "./turn.js";

export { begin } from "./state.js";

/** By this it says that it understands `migrate`. */
const CLIENT = "web/0.1.0";
const HEARTBEAT = 25_000;
/** A connection has to be up by then where there is no other way to fall back to. */
const OPEN = 10_000;
/** A stream whose head has come waits for a broker that is away. */
const STREAM = 30_000;
const FETCH = { token: 15_000, route: 5000 };
const ROUTE_FRESH = 300_000;
const MOVE = 10_000;
/** A connection that lasted so long was a good one: the next tries begin quickly again. */
const STABLE = 10_000;
/** The gateway ends an overlap after 10 s, also if we have given the new connection up ourselves. */
const OVERLAP = 15_000;
/** Fetched tokens in a row that may be refused. */
const REFUSALS = 2;
/** Channels whose end is remembered after nobody listened any more. */
const LEFT = 500;

/** What follows from something that happened. */
export function step(state: State, input: Input): [State, Effect[]] {
  turn(state, input);
  if ("link" in input) {
    const link = links(s).find(({ id }) => id === input.link);
    if (!link) return [s, effects];
    if (input.type === "opened") opened(link);
    else if (input.type === "lost") lose(link, input.why);
    else listen(link, input);
  } else happen(input);
  // Events and pings are many, and lead to nothing that could be asked.
  if (input.type !== "frame" || !/event|ping/.test(input.frame.type)) {
    for (const link of links(s)) if (link.readyAt) sync(link);
    if (s.link?.readyAt) ask(s.link);
    finish();
  }
  for (const link of links(s)) if (link.readyAt) flush(link);
  return [s, effects];
}

/** When `step` has to be called with a tick, if nothing else happens before. */
export function deadline(state: State): number {
  const { report, ...alarms } = state.alarms;
  // A client that is closed has nothing to report, and keeps no process alive.
  const moments = [...Object.values(alarms), state.phase === "connected" ? report : NEVER];
  for (const { dies, queue, paid, readyAt } of links(state)) {
    moments.push(dies, readyAt && queue.length ? paid + 1 : NEVER);
  }
  return Math.min(...moments);
}

function happen(input: Exclude<Happening, { link: number }>): void {
  const { phase } = s;
  switch (input.type) {
    case "connect":
      if (phase === "idle" || phase === "closed") start();
      return;
    case "close":
      return stop("closed by the application");
    case "want":
      return want(input);
    case "request":
      return request(input);
    case "move":
      return order(input.to, input.reason);
    case "fetched":
      if (s.asking && s.asked === input.ask) fetched(input);
      return;
    case "tick":
      return tick();
    case "wake":
      if (phase === "waiting" && s.eager) start();
      else if (s.link?.readyAt) probe(s.link);
      return;
    case "hide":
      return hide();
    case "show":
      if (phase === "away") start();
  }
}

function want({ channel, wish }: Happening & { type: "want" }): void {
  const { channels, left } = s;
  const known = channels.get(channel);
  if (!wish) {
    const last = known?.position ?? known?.floor;
    if (last) left.set(channel, last);
    for (const oldest of left.keys()) if (LEFT < left.size) left.delete(oldest);
    channels.delete(channel);
    s.shown.delete(channel);
    return;
  }
  const { since } = wish;
  const floor = since ? undefined : known ? known.floor : left.get(channel);
  left.delete(channel);
  channels.set(channel, { ...wish, position: known?.position ?? since, floor });
  if (s.phase === "idle") start();
}

function request({ key, frame }: Happening & { type: "request" }): void {
  const { requests, settings, phase } = s;
  const id = ++s.counter;
  requests.set(id, { key, frame: { ...frame, id } as ClientFrame & { type: "publish" } });
  if (phase === "closed") refuse(id, phase, "the client is closed: call connect()");
  if (settings.pending < requests.size) {
    refuse(id, "limit_exceeded", `${settings.pending} requests wait for an answer already`);
  }
  if (phase === "idle") start();
}

function refuse(id: number, code: string, message: string): void {
  settle(id, { type: "error", code, message });
}

// Getting a connection.

function start(): void {
  s.attempt = s.refused = 0;
  prepare();
}

function prepare(): void {
  enter("preparing");
  if (s.settings.refreshable && s.token === undefined) return fetch("token");
  if (s.settings.transport === "auto" && s.routedAt + ROUTE_FRESH <= now) return fetch("route");
  open();
}

function enter(phase: Phase, until = NEVER): void {
  s.phase = phase;
  s.alarms.wait = until;
}

function fetch(what: "token" | "route"): void {
  s.asking = what;
  s.asked = ++s.counter;
  s.alarms.token = NEVER;
  if (s.phase === "preparing") s.alarms.wait = now + FETCH[what];
  effects.push({ do: "fetch", what, ask: s.asked });
}

function fetched({ token, route, reason }: Partial<Happening & { type: "fetched" }>): void {
  const preparing = s.phase === "preparing";
  const { asking } = s;
  s.asking = undefined;
  if (asking === "route") {
    if (route) s.route = route;
    s.routedAt = now;
  } else if (token === undefined) {
    if (preparing) return pause(reason ?? "no token");
    s.alarms.token = now + s.settings.backoffMin * 4;
  } else {
    s.token = token;
    for (const link of links(s)) if (link.readyAt) say(link, { type: "connect", token });
  }
  if (preparing) prepare();
}

function route(): Route {
  const { transport } = s.settings;
  if (transport !== "auto") return { transport, url: address(transport) };
  const fallback = { transport: "sse", url: "/events" } as const;
  return s.route ?? { transport: "websocket", url: "/ws", fallback };
}

function address(transport: TransportName): string {
  const known = [s.route, s.route?.fallback].find((each) => each?.transport === transport);
  return known?.url ?? (transport === "sse" ? "/events" : "/ws");
}

/** WebSockets do not seem to get through here. One that worked before gets a second chance. */
function blocked(): boolean {
  return +s.worked < s.failures;
}

function open(): void {
  const { transport, fallback } = route();
  const other = transport === "websocket" && blocked() && fallback;
  s.link = dial((other || { transport }).transport);
  // A stream has a channel: it is opened with the first one that is asked for.
  enter(s.link ? "opening" : "idle");
}

/** Begins a connection. None where there is nothing that a stream could be opened for. */
function dial(transport: TransportName, overlap = false): Link | undefined {
  const quick = transport === "websocket" && route().fallback;
  const link: Link = {
    id: ++s.counter,
    transport,
    openedAt: now,
    askedAt: now,
    dies: now + (quick ? s.settings.fallbackAfter : OPEN),
    heartbeat: HEARTBEAT,
    subscriptions: new Map(),
    views: new Map(),
    sent: new Set(),
    queue: [],
    paid: 0,
  };
  const path = address(transport) + (transport === "sse" ? stream(link, overlap) : "");
  if (transport === "sse" && !link.subscriptions.size) return;
  effects.push({ do: "open", link: link.id, transport, path });
  return link;
}

/** A stream's address names one channel; the others are subscribed to once it is open. */
function stream(link: Link, overlap: boolean): string {
  const [request] = s.requests.values();
  const [channel] = [...s.channels.keys()].filter((name) => !s.channels.get(name)?.barred);
  // Somebody wants to publish or read, and to listen to nothing.
  const named = channel ?? request?.frame.channel;
  if (named === undefined) return "";
  const { position: since, presence = false } = s.channels.get(named) ?? {};
  link.subscriptions.set(named, { stage: "asked", request: 0, presence, shown: "null" });
  const { session, unit, token } = s;
  const flags = { presence: presence && "1", overlap: overlap && "1" };
  const asked = { client: CLIENT, since, session, unit, token, ...flags };
  const given = Object.entries(asked).filter((pair): pair is [string, string] => !!pair[1]);
  return `?${new URLSearchParams([["format", "frames"], ["channel", named], ...given])}`;
}

function opened(link: Link): void {
  if (link.transport === "sse") {
    link.dies = now + STREAM;
    return;
  }
  const { session, token, unit } = s;
  const overlap = link === s.next || undefined;
  link.askedAt = now;
  const who = { client: CLIENT, unit, session, token, overlap };
  send(link, { type: "connect", id: ++s.counter, ...who } as ClientFrame);
}

// What a connection says.

function listen(link: Link, { frame, at, posted }: Happening & { type: "frame" }): void {
  const { type } = frame;
  if (link.readyAt && !posted) link.dies = now + 2 * link.heartbeat;
  if (type === "welcome") welcome(link, frame, at);
  else if (type === "ping") {
    if (frame.time) synchronised(s.clock, frame.time, now);
    if (link.transport === "websocket") send(link, { type: "pong" });
  } else if (type === "goodbye") {
    link.goodbye = frame;
    lose(link, {});
  } else if (type === "expiring") {
    if (s.settings.refreshable && s.asking !== "token") fetch("token");
  } else if (type !== "migrate") hear(link, frame, posted);
  else if (link === s.link && s.settings.transport === "auto") {
    order(frame.transport, frame.reason ?? "asked by the gateway", frame.within);
  }
}

function welcome(link: Link, frame: ServerFrame & { type: "welcome" }, at?: string): void {
  // The answer to a new token.
  if (link.readyAt) return;
  const { session, member, heartbeat, time } = frame;
  if (time) synchronised(s.clock, time, now, link.askedAt);
  link.readyAt = now;
  link.heartbeat = heartbeat;
  link.dies = now + 2 * heartbeat;
  s.session = session;
  s.member = member;
  s.refused = 0;
  count("connects");
  s.stats.connect += now - link.openedAt;
  if (link.transport === "sse") {
    for (const [channel, known] of link.subscriptions) begins(known, channel, at);
  } else {
    if (s.failures && !s.worked) effects.push({ do: "remember", blocked: false });
    s.worked = true;
    s.failures = s.retries = 0;
  }
  if (link === s.link) serve(link);
}

/** A connection is up, and there was none before. */
function serve({ transport }: Link): void {
  enter("connected");
  const fallback = transport !== route().transport;
  if (fallback && !s.worked) effects.push({ do: "remember", blocked: true });
  upgrade();
  if (!s.lostAt) return emit({ type: "connected", transport, fallback });
  count("resumes");
  emit({ type: "resumed", transport, gap: now - s.lostAt });
  s.lostAt = undefined;
}

/** While SSE serves in a WebSocket's place, the WebSocket is tried again, less and less often. */
function upgrade(): void {
  const wanted = s.link?.transport === "sse" && route().transport === "websocket";
  const after = Math.min((s.worked ? 5000 : 30_000) * 2 ** s.retries, 600_000) * (0.5 + dice / 2);
  s.alarms.upgrade = wanted ? now + after : NEVER;
}

// Losing a connection.

function lose(link: Link, why: Loss): void {
  const { goodbye, readyAt, transport } = link;
  const code = goodbye?.code ?? why.code;
  const reason = goodbye?.reason || why.reason || (code === undefined ? "lost" : `code ${code}`);
  if (!readyAt && (why.status ?? 500) >= 500 && (code ?? 0) < 4000) {
    // Where no transport comes about, it says nothing about WebSockets.
    s.failures = transport === "websocket" ? s.failures + 1 : 0;
    if (link !== s.next) count("connectFailures");
  }
  if (link === s.next) return abandon();
  close(link);
  s.link = undefined;
  if (readyAt) {
    s.lostAt ??= now;
    if (!goodbye) count("interruptions");
    // A gateway that takes clients and loses them again is asked about once a second.
    s.attempt = now - readyAt < STABLE ? Math.min(s.attempt, 2) : 0;
  } else if (transport === "sse" && /^(forbidden|\w+_invalid)$/.test(why.error ?? "")) {
    return bar(link, why.error as string, reason);
  }
  const end = final(link, why);
  if (s.next && (end === undefined || code === 4007)) return promote(reason);
  if (end !== undefined) return stop(end || reason, code);
  if (!readyAt && transport === "websocket" && blocked() && route().fallback) {
    count("fallbacks");
    return open();
  }
  pause(reason, goodbye?.after ?? (why.after === undefined ? undefined : why.after + dice * 1000));
}

/** A stream was refused for the channel that it named: goes on with the others. */
function bar({ subscriptions }: Link, code: string, message: string): void {
  const [channel = ""] = subscriptions.keys();
  const reading = s.channels.get(channel);
  if (reading) {
    reading.barred = true;
    emit({ type: "error", code, message, channel });
  } else {
    for (const [id, { frame }] of s.requests) {
      if (frame.channel === channel) refuse(id, code, message);
    }
  }
  open();
}

/** Why the client does not come back, if it does not. Forgets a token that was refused. */
function final({ goodbye, readyAt }: Link, why: Loss): string | undefined {
  const { status = 0, reason = "" } = why;
  const code = goodbye?.code ?? why.code ?? 0;
  if (code === 4001 || code === 4002 || status === 401) {
    if (!s.settings.refreshable) return reason;
    if (s.token !== undefined) s.refused += 1;
    s.token = undefined;
    return s.refused > REFUSALS ? reason : undefined;
  }
  if (code === 4007 && now - s.overlappedAt < OVERLAP) return;
  if ([204, 400, 403].includes(status)) return reason || `refused with ${status}`;
  // Before the welcome a standard code is that of something in between.
  const back = goodbye ? goodbye.reconnect : reconnects(code) || (!readyAt && code < 4000);
  return back ? undefined : reason;
}

/** Waits before the next try: as told, or a random part of a time that doubles. */
function pause(reason: string, told?: number): void {
  const { backoffMin, backoffMax } = s.settings;
  const after = Math.round(told ?? dice * Math.min(backoffMax, backoffMin * 2 ** s.attempt));
  s.attempt += 1;
  s.eager = told === undefined;
  enter("waiting", now + after);
  emit({ type: "reconnecting", reason, after });
}

/** Has no connection any more, and wants none. */
function leave(phase: Phase): void {
  drop();
  if (s.link) close(s.link);
  s.link = s.asking = undefined;
  s.alarms.token = s.alarms.upgrade = NEVER;
  enter(phase);
}

function stop(reason: string, code?: number): void {
  if (s.phase === "closed") return;
  leave("closed");
  s.lostAt = undefined;
  for (const id of s.requests.keys()) refuse(id, "closed", `the client is closed: ${reason}`);
  emit({ type: "closed", reason, code });
}

// Moving to the other transport.

/** Somebody wants the client elsewhere; also where it comes back to from now on. */
function order(to: TransportName, reason: string, within?: number): void {
  const fallback = { transport: "sse", url: address("sse") } as const;
  s.route = { ...s.route, transport: to, url: address(to), fallback };
  move(to, reason, within);
}

/** Opens the other transport beside the one that serves, which goes on until the new one is proved. */
function move(to: TransportName, reason: string, within = MOVE): void {
  if (!s.link?.readyAt || s.next?.transport === to) return;
  drop();
  upgrade();
  if (s.link.transport === to) return;
  s.next = dial(to, true);
  if (!s.next) return;
  s.reason = reason;
  s.overlappedAt = now;
  s.alarms.move = now + Math.max(within, s.settings.fallbackAfter);
  s.alarms.upgrade = NEVER;
}

/** Leaves the old connection once the new one has all channels and answered. */
function finish(): void {
  const { next } = s;
  if (!next?.readyAt) return;
  for (const { stage } of next.subscriptions.values()) if (/asked|later/.test(stage)) return;
  probe(next);
  if (next.proved) promote("");
}

/** The new connection is the only one from now on. */
function promote(lost: string): void {
  const { link: old, next } = s;
  if (!next) return;
  if (old) close(old);
  s.link = next;
  s.next = undefined;
  s.alarms.move = NEVER;
  if (!next.readyAt) {
    enter("opening");
    return emit({ type: "reconnecting", reason: lost, after: 0 });
  }
  const { transport: to, views } = next;
  s.lostAt = undefined;
  enter("connected");
  count("migrations");
  emit({ type: "migrated", from: to === "sse" ? "websocket" : "sse", to, reason: s.reason });
  for (const channel of views.keys()) reveal(channel);
  upgrade();
  ask(next);
}

/** The new connection did not come about: the old one never stopped serving. */
function abandon(): void {
  if (s.next?.transport === "websocket") s.retries += 1;
  drop();
  count("failedMigrations");
  upgrade();
}

function drop(): void {
  if (s.next) close(s.next);
  s.next = undefined;
  s.alarms.move = NEVER;
}

// Time, and the page.

const DUE: Record<Alarm, () => void> = {
  wait: () => (s.phase === "waiting" ? prepare() : fetched({ reason: "no token in time" })),
  move: abandon,
  again,
  token: () => fetch("token"),
  upgrade: () => move("websocket", "the WebSocket works again"),
  report: () => void s.link?.queue.push(...report()),
};

function tick(): void {
  for (const name of Object.keys(s.alarms) as Alarm[]) {
    if (now < s.alarms[name]) continue;
    s.alarms[name] = NEVER;
    DUE[name]();
  }
  for (const link of links(s)) {
    if (now < link.dies || !links(s).includes(link)) continue;
    lose(link, { reason: link.readyAt ? "silent" : "no answer" });
  }
}

function report(): ClientFrame[] {
  const { settings, link, stats: measured, clock, route } = s;
  const stats = summary(measured, clock, now);
  s.alarms.report = now + settings.reportEvery * (0.75 + dice / 2);
  if (!stats || !link?.readyAt) return [];
  s.stats = noStats(now);
  s.reported = ++s.counter;
  const { transport } = link;
  const { cohort, version } = route ?? {};
  return [{ type: "report", id: s.reported, stats: { ...stats, transport, cohort, version } }];
}

/** The page goes, perhaps for good: says what there is to say, and leaves in an orderly way. */
function hide(): void {
  const { link, session, alarms, phase } = s;
  if (/idle|closed|away/.test(phase)) return;
  if (link?.readyAt && session) {
    s.lostAt = now;
    const frames: ClientFrame[] = alarms.report < NEVER ? report() : [];
    effects.push({ do: "beacon", session, frames: [...frames, { type: "goodbye" }] });
  }
  leave("away");
}
