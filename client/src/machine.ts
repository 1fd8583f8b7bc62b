/**
 * How a client connects, moves between transports, and comes back: the whole of its behaviour.
 *
 * `step` is a pure function; it reads no clock, draws no dice and opens nothing. Whoever calls it does
 * the effects in order, and calls again with what happens, at `deadline` at the latest.
 */
import {
  ask,
  flush,
  hear,
  probe,
  reveal,
  say,
  settle,
  streaming,
  sync,
  type Turn,
} from "./conversation.js";
import {
  type ClientFrame,
  reconnects,
  type Route,
  type ServerFrame,
  type TransportName,
  writePositions,
} from "./protocol.js";
import { type Counter, noStats, summary } from "./report.js";
import type { ClientEvent, Effect, Happening, Input, Link, Loss, Phase, State } from "./state.js";

export { begin } from "./state.js";

const HEARTBEAT = 25_000;
/** A connection has to be up by then where there is no other way to fall back to. */
const OPEN = 10_000;
/** A stream whose head has come waits for a broker that is away. */
const STREAM = 30_000;
const FETCH_TOKEN = 15_000;
const FETCH_ROUTE = 5000;
const ROUTE_FRESH = 300_000;
const MOVE = 10_000;
/** A connection that lasted so long was a good one: the next tries begin quickly again. */
const STABLE = 10_000;
/** The gateway ends an overlap after 10 s, also if we have given the new connection up ourselves. */
const OVERLAP = 15_000;
/** Fetched tokens in a row that may be refused. */
const REFUSALS = 2;
const PROBE = 5000;
/** Errors that are one channel's, not the stream's. */
const REFUSED = ["forbidden", "channel_invalid", "too_many"];
/** Channels whose end is remembered after nobody listened any more. */
const LEFT = 500;
/** Characters of a stream's address that its channels may take. */
const ADDRESS = 4000;

const EITHER: Route = {
  transport: "websocket",
  url: "/ws",
  fallback: { transport: "sse", url: "/events" },
};

/** What follows from something that happened. */
export function step(before: Readonly<State>, input: Input): [State, Effect[]] {
  const t: Turn = { s: copy(before), now: input.now, dice: input.dice, effects: [] };
  const talked = happen(t, input);
  for (const link of links(t.s)) {
    if (link.readyAt === undefined) continue;
    if (talked) sync(t, link);
    if (talked && link === t.s.link) ask(t, link);
  }
  if (talked) finish(t);
  for (const link of links(t.s)) flush(t, link);
  return [t.s, t.effects];
}

/** When `step` has to be called with a tick, if nothing else happens before. */
export function deadline(s: Readonly<State>): number {
  const moments = [s.until, s.move?.until, s.tokenRetryAt];
  if (s.phase === "connected") moments.push(s.reportAt, s.websocket.retryAt);
  for (const link of links(s)) {
    moments.push(link.readyAt === undefined ? link.deadline : link.heard + 2 * link.heartbeat);
    moments.push(link.probe?.until);
    if (link.queue.length) {
      moments.push(link.allowedAt + ((1 - link.allowance) * 1000) / s.settings.rate);
    }
    for (const known of link.subscriptions.values()) moments.push(known.retryAt);
  }
  if (s.link?.readyAt !== undefined) {
    for (const [id, request] of s.requests) {
      if (!s.link.sent.has(id)) moments.push(request.retryAt);
    }
  }
  return Math.min(...moments.filter((moment) => moment !== undefined));
}

function links(s: Readonly<State>): Link[] {
  return [s.link, s.next].filter((link) => link !== undefined);
}

function copy(s: Readonly<State>): State {
  const own = (link: Link | undefined) =>
    link && {
      ...link,
      subscriptions: new Map(link.subscriptions),
      views: new Map(link.views),
      sent: new Set(link.sent),
      queue: [...link.queue],
    };
  return {
    ...s,
    link: own(s.link),
    next: own(s.next),
    channels: new Map(s.channels),
    left: new Map(s.left),
    shown: new Map(s.shown),
    requests: new Map(s.requests),
  };
}

/** Returns whether there may be something new to say. */
function happen(t: Turn, input: Input): boolean {
  const { s } = t;
  switch (input.type) {
    case "connect":
      if (s.phase === "idle" || s.phase === "closed") start(t);
      return true;
    case "close":
      stop(t, "closed by the application");
      return true;
    case "want":
      want(t, input);
      return true;
    case "request":
      request(t, input);
      return true;
    case "move":
      order(t, input.to, input.reason);
      return true;
    case "token":
    case "route":
      if (s.asking?.id === input.ask) fetched(t, input);
      return true;
    case "tick":
      tick(t);
      return true;
    case "wake":
      wake(t);
      return true;
    case "hide":
      hide(t);
      return true;
    case "show":
      if (s.phase === "away") start(t);
      return true;
  }
  const link = links(s).find(({ id }) => id === input.link);
  if (!link) return false;
  switch (input.type) {
    case "opened":
      opened(t, link);
      return true;
    case "lost":
      lose(t, link, input.why);
      return true;
    case "frame":
      listen(t, link, input);
      return input.frame.type !== "event" && input.frame.type !== "ping";
  }
}

function want({ s, ...t }: Turn, { channel, wish }: Input & { type: "want" }): void {
  const known = s.channels.get(channel);
  if (!wish) {
    const last = known?.position ?? known?.floor;
    if (last) s.left.set(channel, last);
    for (const oldest of s.left.keys()) if (LEFT < s.left.size) s.left.delete(oldest);
    s.channels.delete(channel);
    s.shown.delete(channel);
    return;
  }
  const position = known?.position ?? wish.since;
  const floor = known ? known.floor : s.left.get(channel);
  s.left.delete(channel);
  s.channels.set(channel, { ...wish, position, floor: wish.since ? undefined : floor });
  if (s.phase === "idle") start({ s, ...t });
}

function request(t: Turn, { key, frame }: Input & { type: "request" }): void {
  const { s, effects } = t;
  const refuse = (code: string, message: string) =>
    effects.push({ do: "settle", key, answer: { type: "error", code, message } });
  if (s.phase === "closed") return void refuse("closed", "the client is closed: call connect()");
  if (s.settings.pending <= s.requests.size) {
    return void refuse("limit_exceeded", `${s.requests.size} requests wait for an answer already`);
  }
  const id = ++s.counter;
  s.requests.set(id, { key, frame: { ...frame, id } as ClientFrame & { type: "publish" } });
  if (s.phase === "idle") start(t);
}

// Getting a connection.

function start(t: Turn): void {
  t.s.attempt = 0;
  t.s.refused = 0;
  prepare(t);
}

function prepare(t: Turn): void {
  const { s, now } = t;
  enter(s, "preparing");
  if (s.settings.refreshable && s.token === undefined) return fetch(t, "token", FETCH_TOKEN);
  if (s.settings.transport === "auto" && s.routedAt + ROUTE_FRESH <= now) {
    return fetch(t, "route", FETCH_ROUTE);
  }
  open(t);
}

function enter(s: State, phase: Phase, until?: number): void {
  s.phase = phase;
  s.until = until;
}

function fetch({ s, now, effects }: Turn, what: "token" | "route", within: number): void {
  s.asking = { id: ++s.counter, what };
  s.tokenRetryAt = undefined;
  if (s.phase === "preparing") s.until = now + within;
  effects.push({ do: "fetch", what, ask: s.asking.id, token: s.token });
}

function fetched(t: Turn, answer: Extract<Happening, { type: "token" | "route" }>): void {
  const { s, now } = t;
  const preparing = s.phase === "preparing";
  s.asking = undefined;
  if (answer.type === "route") {
    if (answer.route) s.route = answer.route;
    s.routedAt = now;
  } else if (answer.token === undefined) {
    if (preparing) return pause(t, answer.reason ?? "no token");
    s.tokenRetryAt = now + s.settings.backoffMin * 4;
  } else {
    s.token = answer.token;
    const frame = { type: "connect", id: ++s.counter, token: s.token } as const;
    for (const link of links(s)) if (link.readyAt !== undefined) say(link, frame);
  }
  if (preparing) prepare(t);
}

function route({ settings: { transport }, route = EITHER }: State): Route {
  if (transport === "auto") return route;
  return { transport, url: transport === "sse" ? "/events" : "/ws" };
}

/** WebSockets do not seem to get through here. One that worked before gets a second chance. */
function blocked({ websocket: { worked, failures } }: State): boolean {
  return (worked ? 2 : 1) <= failures;
}

function open(t: Turn): void {
  const { s } = t;
  const { transport, fallback } = route(s);
  const other = transport === "websocket" && blocked(s) ? fallback?.transport : undefined;
  const link = dial(t, other ?? transport, false);
  s.link = link;
  // A stream has a channel: it is opened with the first one that is asked for.
  enter(s, link ? "opening" : "idle");
}

/** Begins a connection. None where there is nothing that a stream could be opened for. */
function dial(t: Turn, transport: TransportName, overlap: boolean): Link | undefined {
  const { s, now, effects } = t;
  const { fallback } = route(s);
  const quick = transport === "websocket" && fallback;
  const link: Link = {
    id: ++s.counter,
    transport,
    openedAt: now,
    deadline: now + (quick ? s.settings.fallbackAfter : OPEN),
    heard: now,
    heartbeat: HEARTBEAT,
    subscriptions: new Map(),
    views: new Map(),
    sent: new Set(),
    queue: [],
    allowance: s.settings.burst,
    allowedAt: now,
    proved: false,
  };
  const path = transport === "sse" ? stream(s, link, overlap) : address(s, "websocket");
  if (!path) return;
  effects.push({ do: "open", link: link.id, transport, path, token: s.token });
  return link;
}

function address(s: State, transport: TransportName): string {
  const known = route(s);
  if (known.transport === transport) return known.url;
  if (known.fallback?.transport === transport) return known.fallback.url;
  return transport === "sse" ? "/events" : "/ws";
}

/** The channels that a stream's address names; what is left over is subscribed to once it is open. */
function named(s: State): string[] {
  const wanted: string[] = [];
  let length = 0;
  let together: boolean | undefined;
  for (const [channel, { barred, presence }] of s.channels) {
    const refused = s.link?.subscriptions.get(channel)?.stage === "refused";
    // Presence is asked for, and has to be allowed, in all channels of an address or in none.
    if (barred || refused || (together ?? !!presence) !== !!presence) continue;
    together = !!presence;
    // An address that is too long does not get through everywhere.
    length += 2 * channel.length + 40;
    if (wanted.length && (s.narrow || ADDRESS < length)) break;
    wanted.push(channel);
  }
  // Somebody wants to publish or read, and to listen to nothing.
  const [request] = s.requests.values();
  return wanted.length || !request ? wanted : [request.frame.channel];
}

function stream(s: State, link: Link, overlap: boolean): string | undefined {
  const channels = named(s);
  if (!channels.length) return;
  const presence = channels.some((channel) => s.channels.get(channel)?.presence);
  for (const channel of channels) {
    link.subscriptions.set(channel, { stage: "asked", request: 0, presence, shown: "null" });
  }
  const query = new URLSearchParams(channels.map((channel) => ["channel", channel]));
  const since = writePositions(channels, (channel) => s.channels.get(channel)?.position);
  if (since) query.set("since", since);
  if (s.session) query.set("session", s.session);
  if (presence) query.set("presence", "1");
  if (overlap) query.set("overlap", "1");
  return `${address(s, "sse")}?${query}`;
}

function opened(t: Turn, link: Link): void {
  const { s, now, effects } = t;
  if (link.transport === "sse") {
    link.deadline = now + STREAM;
    return;
  }
  const { session, token } = s;
  const frame: ClientFrame = {
    type: "connect",
    id: ++s.counter,
    client: "web/0.1.0",
    session,
    token,
    overlap: link === s.next || undefined,
  };
  effects.push({ do: "send", link: link.id, frames: [frame] });
}

// What a connection says.

function listen(
  t: Turn,
  link: Link,
  { frame, at, posted = false }: Input & { type: "frame" },
): void {
  const { s, now, effects } = t;
  if (!posted) {
    link.heard = now;
    if (link.probe?.request === -1) link.probe = undefined;
    else if (link.probe) link.probe = { ...link.probe, until: Number.POSITIVE_INFINITY };
  }
  switch (frame.type) {
    case "welcome":
      return welcome(t, link, frame, at);
    case "ping":
      if (link.transport === "websocket") {
        effects.push({ do: "send", link: link.id, frames: [{ type: "pong" }] });
      }
      return;
    case "goodbye":
      link.goodbye = frame;
      return lose(t, link, {});
    case "migrate":
      if (link === s.link && s.settings.transport === "auto") {
        order(t, frame.transport, frame.reason ?? "asked by the gateway", frame.within);
      }
      return;
    case "expiring":
      if (s.settings.refreshable && s.asking?.what !== "token") fetch(t, "token", FETCH_TOKEN);
      return;
    default:
      return hear(t, link, frame, posted);
  }
}

function welcome(
  t: Turn,
  link: Link,
  frame: ServerFrame & { type: "welcome" },
  at: string | undefined,
): void {
  const { s, now, effects } = t;
  // The answer to a new token.
  if (link.readyAt !== undefined) return;
  link.readyAt = now;
  link.heartbeat = frame.heartbeat;
  s.session = frame.session;
  s.member = frame.member;
  s.refused = 0;
  s.stats = {
    ...s.stats,
    connects: s.stats.connects + 1,
    connectMs: s.stats.connectMs + now - link.openedAt,
  };
  if (link.transport === "sse") streaming(t, link, at ?? "");
  else {
    if (s.websocket.failures && !s.websocket.worked)
      effects.push({ do: "remember", blocked: false });
    s.websocket = { worked: true, failures: 0, retries: 0 };
  }
  if (link === s.link) serve(t, link);
}

/** A connection is up, and there was none before. */
function serve(t: Turn, link: Link): void {
  const { s, now, effects } = t;
  const { transport } = link;
  enter(s, "connected");
  const fallback = transport !== route(s).transport;
  if (fallback && !s.websocket.worked) effects.push({ do: "remember", blocked: true });
  upgrade(t);
  if (s.lostAt === undefined) return emit(t, { type: "connected", transport, fallback });
  count(s, "resumes");
  emit(t, { type: "resumed", transport, gap: now - s.lostAt });
  s.lostAt = undefined;
}

/** While SSE serves in a WebSocket's place, the WebSocket is tried again, less and less often. */
function upgrade({ s, now, dice }: Turn): void {
  const wanted = s.link?.transport === "sse" && route(s).transport === "websocket";
  const { worked, retries } = s.websocket;
  const pause = Math.min((worked ? 5000 : 30_000) * 2 ** retries, 600_000) * (0.5 + dice / 2);
  s.websocket = { ...s.websocket, retryAt: wanted ? now + pause : undefined };
}

// Losing a connection.

function lose(t: Turn, link: Link, why: Loss): void {
  const { s, now, effects, dice } = t;
  const served = link.readyAt !== undefined;
  const { goodbye } = link;
  const code = goodbye?.code ?? why.code;
  const { status = 500 } = why;
  if (!served && status >= 500 && (code === undefined || code < 4000)) failed(s, link.transport);
  if (link === s.next) return abandon(t);
  effects.push({ do: "close", link: link.id });
  s.link = undefined;
  const reason = goodbye?.reason || why.reason || (code === undefined ? "lost" : `code ${code}`);
  if (served) {
    s.lostAt ??= now;
    if (!goodbye) count(s, "interruptions");
  }
  if (!served && link.transport === "sse" && REFUSED.includes(why.error ?? "")) {
    return bar(t, link, why);
  }
  const end = final(t, link, why, served);
  if (s.next && (end === undefined || code === 4007)) return promote(t, reason);
  if (end !== undefined) return stop(t, end || reason, code);
  if (!served && link.transport === "websocket" && blocked(s) && route(s).fallback) {
    count(s, "fallbacks");
    return open(t);
  }
  // A gateway that takes clients and loses them again is asked about once a second.
  if (served) s.attempt = now - (link.readyAt as number) < STABLE ? Math.min(s.attempt, 2) : 0;
  const told = why.after === undefined ? undefined : why.after + dice * 1000;
  pause(t, reason, goodbye ? goodbye.after : told);
}

/** A stream was refused for one of its channels: finds out which, and goes on with the others. */
function bar(t: Turn, link: Link, { error: code = "", reason: message = code }: Loss): void {
  const { s } = t;
  const [channel, ...others] = link.subscriptions.keys();
  s.narrow = true;
  if (channel !== undefined && !others.length) {
    const reading = s.channels.get(channel);
    if (reading) s.channels.set(channel, { ...reading, barred: true });
    emit(t, { type: "error", code, message, channel });
    for (const [id, { frame }] of s.requests) {
      if (reading || frame.channel !== channel) continue;
      settle(t, id, { type: "error", code, message });
    }
  }
  open(t);
}

/** A connection did not come about. Where no transport does, it says nothing about WebSockets. */
function failed(s: State, transport: TransportName): void {
  const failures = transport === "websocket" ? s.websocket.failures + 1 : 0;
  s.websocket = { ...s.websocket, failures };
}

/** Why the client does not come back, if it does not. Forgets a token that was refused. */
function final(t: Turn, link: Link, why: Loss, served: boolean): string | undefined {
  const { s, now } = t;
  const { goodbye } = link;
  const code = goodbye?.code ?? why.code ?? 0;
  const { status = 0, reason = "" } = why;
  if (code === 4001 || code === 4002 || status === 401) {
    if (!s.settings.refreshable) return reason;
    if (s.token !== undefined) s.refused += 1;
    s.token = undefined;
    return s.refused > REFUSALS ? reason : undefined;
  }
  if (code === 4007 && now - s.overlappedAt < OVERLAP) return;
  if ([204, 400, 403].includes(status)) return reason || `refused with ${status}`;
  // Before the welcome a standard code is that of something in between.
  const back = goodbye ? goodbye.reconnect : reconnects(code) || (!served && code < 4000);
  return back ? undefined : reason;
}

/** Waits before the next try: as told, or a random part of a time that doubles. */
function pause(t: Turn, reason: string, told?: number): void {
  const { s, now, dice } = t;
  const { backoffMin, backoffMax } = s.settings;
  const after = Math.round(told ?? dice * Math.min(backoffMax, backoffMin * 2 ** s.attempt));
  s.attempt += 1;
  s.eager = told === undefined;
  enter(s, "waiting", now + after);
  emit(t, { type: "reconnecting", reason, after });
}

function stop(t: Turn, reason: string, code?: number): void {
  const { s, effects } = t;
  if (s.phase === "closed") return;
  drop(t);
  if (s.link) effects.push({ do: "close", link: s.link.id });
  s.link = undefined;
  s.asking = undefined;
  s.tokenRetryAt = undefined;
  s.lostAt = undefined;
  const answer = {
    type: "error",
    code: "closed",
    message: `the client is closed: ${reason}`,
  } as const;
  for (const id of s.requests.keys()) settle(t, id, answer);
  enter(s, "closed");
  emit(t, { type: "closed", reason, code });
}

// Moving to the other transport.

/** Somebody wants the client elsewhere; also where it comes back to from now on. */
function order(t: Turn, to: TransportName, reason: string, within?: number): void {
  const { s } = t;
  const known = s.route ?? EITHER;
  const fallback = { transport: "sse", url: address(s, "sse") } as const;
  s.route = { ...known, transport: to, url: address(s, to), fallback };
  move(t, to, reason, within);
}

/** Opens the other transport beside the one that serves, which goes on until the new one is proved. */
function move(t: Turn, to: TransportName, reason: string, within = MOVE): void {
  const { s, now } = t;
  if (s.link?.readyAt === undefined || s.next?.transport === to) return;
  drop(t);
  upgrade(t);
  if (s.link.transport === to) return;
  s.next = dial(t, to, true);
  if (!s.next) return;
  s.move = { reason, until: now + Math.max(within, s.settings.fallbackAfter) };
  s.overlappedAt = now;
  s.websocket = { ...s.websocket, retryAt: undefined };
}

/** Leaves the old connection once the new one has all channels and answered. */
function finish(t: Turn): void {
  const { s } = t;
  const { next } = s;
  if (next?.readyAt === undefined) return;
  for (const { stage } of next.subscriptions.values()) {
    if (stage !== "on" && stage !== "refused") return;
  }
  probe(t, next, PROBE);
  if (next.proved) promote(t, "");
}

/** The new connection is the only one from now on. */
function promote(t: Turn, lost: string): void {
  const { s, effects } = t;
  const { link: old, next, move: under } = s;
  if (!next) return;
  if (old) effects.push({ do: "close", link: old.id });
  s.link = next;
  s.next = undefined;
  s.move = undefined;
  if (next.readyAt === undefined) {
    enter(s, "opening");
    return emit(t, { type: "reconnecting", reason: lost, after: 0 });
  }
  s.lostAt = undefined;
  enter(s, "connected");
  count(s, "migrations");
  const from = next.transport === "sse" ? "websocket" : "sse";
  emit(t, { type: "migrated", from, to: next.transport, reason: under?.reason ?? "" });
  for (const channel of next.views.keys()) reveal(t, channel);
  upgrade(t);
  sync(t, next);
  ask(t, next);
}

/** The new connection did not come about: the old one never stopped serving. */
function abandon(t: Turn): void {
  const { s } = t;
  if (s.next?.transport === "websocket") {
    s.websocket = { ...s.websocket, retries: s.websocket.retries + 1 };
  }
  drop(t);
  count(s, "failedMigrations");
  upgrade(t);
}

function drop({ s, effects }: Turn): void {
  if (s.next) effects.push({ do: "close", link: s.next.id });
  s.next = undefined;
  s.move = undefined;
}

// Time, and the page.

function tick(t: Turn): void {
  const { s, now } = t;
  if (s.until !== undefined && s.until <= now) due(t);
  for (const link of links(s)) {
    if (link !== s.link && link !== s.next) continue;
    const silent = link.heard + 2 * link.heartbeat <= now || (link.probe?.until ?? now + 1) <= now;
    if (link.readyAt === undefined) {
      if (link.deadline <= now) lose(t, link, { reason: "no answer" });
    } else if (silent) lose(t, link, { reason: "silent" });
  }
  if (s.move && s.move.until <= now) {
    if (s.next?.transport === "websocket" && s.next.readyAt === undefined) failed(s, "websocket");
    abandon(t);
  }
  if (s.phase !== "connected") return;
  if (s.tokenRetryAt !== undefined && s.tokenRetryAt <= now) fetch(t, "token", FETCH_TOKEN);
  if (s.websocket.retryAt !== undefined && s.websocket.retryAt <= now) {
    move(t, "websocket", "the WebSocket works again");
  }
  const frame = s.reportAt !== undefined && s.reportAt <= now && report(t);
  if (frame && s.link) say(s.link, frame);
}

/** Waiting is over. */
function due(t: Turn): void {
  const { s, now } = t;
  const { asking, phase } = s;
  s.until = undefined;
  if (phase === "waiting") return prepare(t);
  s.asking = undefined;
  if (asking?.what === "token") return pause(t, "no token in time");
  s.routedAt = now;
  prepare(t);
}

function report({ s, now, dice }: Turn): ClientFrame | undefined {
  const stats = summary(s.stats, s.clock, now);
  s.reportAt = now + s.settings.reportEvery * (0.75 + dice / 2);
  if (!stats) return;
  s.stats = noStats(now);
  s.reported = ++s.counter;
  const transport = s.link?.transport;
  const { cohort, version } = s.route ?? {};
  return { type: "report", id: s.reported, stats: { ...stats, transport, cohort, version } };
}

function wake(t: Turn): void {
  const { s } = t;
  if (s.phase === "waiting" && s.eager) start(t);
  else if (s.link?.readyAt !== undefined) probe(t, s.link, PROBE);
}

/** The page goes, perhaps for good: says what there is to say, and leaves in an orderly way. */
function hide(t: Turn): void {
  const { s, now, effects } = t;
  if (s.phase === "idle" || s.phase === "closed" || s.phase === "away") return;
  const { link, session } = s;
  if (link?.readyAt !== undefined) {
    s.lostAt = now;
    const frame = s.reportAt === undefined ? undefined : report(t);
    if (frame && link.transport === "websocket") {
      effects.push({ do: "send", link: link.id, frames: [frame] });
    } else if (frame && session) effects.push({ do: "beacon", session, frame });
  }
  drop(t);
  if (link) effects.push({ do: "close", link: link.id });
  s.link = undefined;
  s.asking = undefined;
  enter(s, "away");
}

function count(s: State, what: Counter): void {
  s.stats = { ...s.stats, [what]: s.stats[what] + 1 };
}

function emit({ effects }: Turn, event: ClientEvent): void {
  effects.push({ do: "emit", event });
}
