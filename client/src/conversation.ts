/**
 * What is said on one connection about channels and requests, and what it says back. Part of the
 * machine: pure, and it knows nothing of how a connection comes or goes.
 */
import { fold, NOBODY } from "./presence.js";
import {
  type ClientFrame,
  compare,
  type Message,
  type Page,
  type PresenceNews,
  type Published,
  type Refusal,
  readPositions,
  type ServerFrame,
} from "./protocol.js";
import { sampled, synchronised } from "./report.js";
import type { Effect, Link, State, Subscription } from "./state.js";

/** One step under way: a copy of the state that may be written to, and what is to be done. */
export interface Turn {
  readonly s: State;
  readonly now: number;
  readonly dice: number;
  readonly effects: Effect[];
}

/** What came before a connection was up for so long is a replay, and tells nothing about delay. */
const REPLAY = 2000;

/** How long to wait before something is asked again that the broker could not do. */
const UNAVAILABLE = 1000;

export function say(link: Link, frame: ClientFrame): void {
  link.queue.push(frame);
}

/** Makes the connection read what is wanted, and nothing else. */
export function sync(t: Turn, link: Link): void {
  const { s, now } = t;
  for (const [channel, reading] of s.channels) {
    if (reading.barred && link.transport === "sse") continue;
    const known = link.subscriptions.get(channel);
    const on = known?.stage === "on";
    const due = known?.stage === "later" && (known.retryAt ?? 0) <= now;
    if (!known || due || (on && reading.presence && !known.presence)) {
      if (on) say(link, { type: "unsubscribe", id: ++s.counter, channel });
      subscribe(t, link, channel);
    } else if (on && known.shown !== shown(s, channel)) {
      show(t, link, channel, known);
    }
  }
  for (const channel of link.subscriptions.keys()) {
    if (s.channels.has(channel)) continue;
    const { stage } = link.subscriptions.get(channel) as Subscription;
    const read = stage === "on" || stage === "asked";
    if (read) say(link, { type: "unsubscribe", id: ++s.counter, channel });
    link.subscriptions.delete(channel);
    link.views.delete(channel);
  }
}

function subscribe({ s }: Turn, link: Link, channel: string): void {
  const { position, presence, state } = s.channels.get(channel) ?? {};
  const request = ++s.counter;
  const wish = { presence: !!presence, shown: shown(s, channel) };
  link.subscriptions.set(channel, { stage: "asked", request, ...wish });
  say(link, {
    type: "subscribe",
    id: request,
    channel,
    since: position,
    presence: presence || undefined,
    state: state ?? undefined,
  });
}

function show({ s }: Turn, link: Link, channel: string, known: Subscription): void {
  const state = s.channels.get(channel)?.state ?? null;
  const request = ++s.counter;
  link.subscriptions.set(channel, { ...known, request, shown: shown(s, channel) });
  say(link, { type: "presence", id: request, channel, state });
}

function shown(s: State, channel: string): string {
  return JSON.stringify(s.channels.get(channel)?.state ?? null);
}

/** Sends the requests that this connection has not carried yet. */
export function ask({ s, now }: Turn, link: Link): void {
  for (const [id, request] of s.requests) {
    if (link.sent.has(id) || now < (request.retryAt ?? 0)) continue;
    link.sent.add(id);
    s.requests.set(id, { ...request, sentAt: now });
    say(link, request.frame);
  }
}

/** Answers a request, and forgets it. */
export function settle({ s, effects }: Turn, id: number, answer: Published | Page | Refusal): void {
  const request = s.requests.get(id);
  if (request) effects.push({ do: "settle", key: request.key, answer });
  s.requests.delete(id);
  for (const link of [s.link, s.next]) link?.sent.delete(id);
}

/** Asks for something, so that an answer, or none, tells whether the connection lives. */
export function probe({ s, now }: Turn, link: Link, within: number): void {
  if (link.probe) return;
  for (const [channel, { stage }] of link.subscriptions) {
    const since = s.channels.get(channel)?.position;
    if (stage !== "on" || !since) continue;
    link.probe = { request: ++s.counter, until: now + within };
    say(link, { type: "history", id: link.probe.request, channel, since, limit: 1 });
    return;
  }
  link.proved = true;
}

/** Takes what was said about channels and requests. */
export function hear(t: Turn, link: Link, frame: ServerFrame, posted: boolean): void {
  const { s } = t;
  if ("id" in frame && typeof frame.id === "number" && frame.id === link.probe?.request) {
    return proved(t, link, frame, posted);
  }
  switch (frame.type) {
    case "event":
      return take(t, link, frame);
    case "subscribed":
      return subscribed(t, link, frame);
    case "unsubscribed":
      if (frame.id === undefined) {
        refuse(t, link, frame.channel, frame.code ?? "unsubscribed", "the gateway ended it");
      }
      return;
    case "presence":
      return see(t, link, frame.channel, frame);
    case "reset":
      return reset(t, link, frame);
    case "published":
    case "history": {
      const request = s.requests.get(frame.id ?? -1);
      if (!request) return;
      if (frame.type === "published") acknowledged(t, request, frame.message_id);
      return settle(t, frame.id as number, frame);
    }
    case "error":
      return refused(t, link, frame);
  }
}

/** Each connection delivers without holes from where it began, so what is ahead of all is the next. */
function take(t: Turn, link: Link, { channel, ...event }: Message): void {
  const { s, now, effects } = t;
  const reading = s.channels.get(channel);
  const stage = link.subscriptions.get(channel)?.stage;
  // A socket keeps the order: before the answer it can only be of a subscription that was given up.
  const ours = stage === "on" || (stage === "asked" && link.transport === "sse");
  if (!reading || !ours) return;
  const place = reading.position ? compare(reading.position, event.position) : "ahead";
  if (reading.past && compare(reading.past, event.position) !== "foreign") return;
  if (place === "held" || (place === "foreign" && s.next && link !== s.next)) return;
  if (reading.floor && compare(reading.floor, event.position) === "held") return;
  s.channels.set(channel, { ...reading, position: event.position });
  const { id, name, data, position, time } = event;
  effects.push({
    do: "deliver",
    message: { channel, id, name, data, position, time },
  });
  if (link.readyAt !== undefined && link.readyAt + REPLAY < now) {
    const delay = now - time;
    s.stats = sampled(s.stats, delay, t.dice);
    s.clock = { ...s.clock, floor: Math.min(s.clock.floor, delay) };
  }
  if (s.acked?.id === id) s.clock = synchronised(s.clock, s.acked.sent, s.acked.at, time);
  for (const [number, request] of s.requests) {
    const { frame } = request;
    if (frame.type === "publish" && frame.message_id === id) {
      s.requests.set(number, { ...request, time });
    }
  }
}

function acknowledged(t: Turn, request: { sentAt?: number; time?: number }, id: string): void {
  const { s, now } = t;
  const sent = request.sentAt ?? now;
  if (request.time) s.clock = synchronised(s.clock, sent, now, request.time);
  else s.acked = { id, sent, at: now };
}

function subscribed(t: Turn, link: Link, frame: ServerFrame & { type: "subscribed" }): void {
  const { channel, position } = frame;
  const known = link.subscriptions.get(channel);
  if (!known || (frame.id !== undefined && frame.id !== known.request)) return;
  link.subscriptions.set(channel, { ...known, stage: "on" });
  held(t, channel, position);
  if (frame.members || frame.count !== undefined) {
    link.views.delete(channel);
    see(t, link, channel, frame);
  }
}

/** A channel that begins now begins here. */
function held({ s }: Turn, channel: string, position: string): void {
  const reading = s.channels.get(channel);
  if (reading && !reading.position) s.channels.set(channel, { ...reading, position });
}

/** An SSE stream is open: it reads what its address names, from where its `id:` says. */
export function streaming(t: Turn, link: Link, at: string): void {
  const channels = [...link.subscriptions.keys()];
  for (const channel of channels) {
    const known = link.subscriptions.get(channel) as Subscription;
    link.subscriptions.set(channel, { ...known, stage: "on" });
  }
  for (const [channel, position] of readPositions(at, channels)) held(t, channel, position);
}

function see(t: Turn, link: Link, channel: string, news: PresenceNews): void {
  if (!link.subscriptions.has(channel)) return;
  link.views.set(channel, fold(link.views.get(channel) ?? NOBODY, news));
  if (link === t.s.link) reveal(t, channel);
}

/** Shows who is there as the serving connection knows it. */
export function reveal({ s, effects }: Turn, channel: string): void {
  const view = s.link?.views.get(channel);
  const reading = s.channels.get(channel);
  if (!view || !reading?.presence) return;
  const before = s.shown.get(channel) ?? NOBODY;
  s.shown.set(channel, view);
  effects.push({ do: "presence", channel, before, view });
}

function reset(t: Turn, link: Link, frame: ServerFrame & { type: "reset" }): void {
  const { s, effects } = t;
  const { channel, position, reason } = frame;
  const reading = s.channels.get(channel);
  if (!reading) return;
  if (s.next) {
    // While two connections read the channel, the newer one knows better, and tells once.
    if (link !== s.next && s.next.subscriptions.get(channel)?.stage === "on") return;
    if (reading.position && compare(reading.position, position) === "held") return;
    if (reading.past && compare(reading.past, position) !== "foreign") return;
  }
  const { position: before, past } = reading;
  const lost = before && compare(before, position) === "foreign" ? before : past;
  s.channels.set(channel, { ...reading, position, past: lost });
  s.stats = { ...s.stats, resets: s.stats.resets + 1 };
  effects.push({ do: "emit", event: { type: "reset", channel, position, reason } });
}

function proved(t: Turn, link: Link, frame: ServerFrame, posted: boolean): void {
  link.proved = true;
  if (posted && frame.type === "history") {
    const position = t.s.channels.get(frame.channel)?.position;
    const behind = position && compare(position, frame.position) !== "held";
    // The log is further than the stream: what is missing has to come on the stream in time.
    if (behind) {
      link.probe = { request: -1, until: link.probe?.until ?? 0 };
      return;
    }
  }
  link.probe = undefined;
}

function refused(t: Turn, link: Link, frame: ServerFrame & { type: "error" }): void {
  const { s, now, effects } = t;
  const { id = -1, code, message } = frame;
  const publish = s.requests.get(id)?.frame.type === "publish";
  const again =
    code === "unavailable" ||
    code === "node_full" ||
    (code === "token_expired" && s.settings.refreshable) ||
    (code === "limit_exceeded" && publish);
  const retryAt = now + UNAVAILABLE * (0.5 + t.dice);
  const request = s.requests.get(id);
  if (request && again) {
    link.sent.delete(id);
    s.requests.set(id, { ...request, retryAt });
    return;
  }
  if (request) return settle(t, id, frame);
  if (id === s.reported) {
    if (code === "unknown_type") s.reportAt = undefined;
    return;
  }
  for (const [channel, known] of link.subscriptions) {
    if (known.request !== id) continue;
    // A presence frame's refusal: the channel is read all the same.
    if (known.stage === "on") break;
    if (again) link.subscriptions.set(channel, { ...known, stage: "later", retryAt });
    else if (code === "already_subscribed") resubscribe(t, link, channel, known);
    else refuse(t, link, channel, code, message);
    return;
  }
  // What was given up in the meantime needs no answer; what comes before the welcome, the close tells.
  if (code !== "not_subscribed" && link.readyAt !== undefined)
    effects.push({ do: "emit", event: { type: "error", code, message } });
}

/** The answer to an earlier request got lost. Without a position it is not known where it began. */
function resubscribe(t: Turn, link: Link, channel: string, known: Subscription): void {
  if (t.s.channels.get(channel)?.position) {
    link.subscriptions.set(channel, { ...known, stage: "on" });
    return;
  }
  say(link, { type: "unsubscribe", id: ++t.s.counter, channel });
  subscribe(t, link, channel);
}

function refuse(t: Turn, link: Link, channel: string, code: string, message: string): void {
  const known = link.subscriptions.get(channel);
  if (!known) return;
  link.subscriptions.set(channel, { ...known, stage: "refused" });
  t.effects.push({ do: "emit", event: { type: "error", code, message, channel } });
}

/** Sends as much as may be sent now. */
export function flush({ s, now, effects }: Turn, link: Link): void {
  const { rate, burst } = s.settings;
  const allowed = link.allowance + ((now - link.allowedAt) * rate) / 1000;
  link.allowance = Math.min(burst, Math.max(allowed, link.allowance));
  link.allowedAt = now;
  const frames = link.queue.splice(0, Math.floor(link.allowance + 1e-6));
  link.allowance -= frames.length;
  if (frames.length) effects.push({ do: "send", link: link.id, frames });
}
