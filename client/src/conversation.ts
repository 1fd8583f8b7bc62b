/**
 * What is said on one connection about channels and requests, and what it says back. Part of the
 * machine; it knows nothing of how a connection comes or goes.
 */
import { difference, fold, NOBODY } from "./presence.js";
import {
  type ClientFrame,
  compare,
  type Message,
  type Page,
  type PresenceNews,
  type Published,
  type Refusal,
  type ServerFrame,
} from "./protocol.js";
import { sampled } from "./report.js";
import { type Link, NEVER, type Subscription } from "./state.js";
import { count, dice, effects, emit, links, now, s } from "./turn.js";

/** What came before a connection was up for so long is a replay, and tells nothing about delay. */
const REPLAY = 2000;
/** How long to wait before something is asked again that the broker could not do. */
const UNAVAILABLE = 1000;
const PROBE = 5000;

/** Has a frame wait for its turn. Returns its number. */
export function say(link: Link, frame: Record<string, unknown>): number {
  const id = ++s.counter;
  link.queue.push({ ...frame, id } as ClientFrame & { id: number });
  return id;
}

/** Makes the connection read what is wanted, and nothing else. */
export function sync(link: Link): void {
  const { subscriptions } = link;
  for (const [channel, { barred, presence, state = null }] of s.channels) {
    const known = subscriptions.get(channel);
    const on = known?.stage === "on";
    const more = on && presence && !known.presence;
    if (more) say(link, { type: "unsubscribe", channel });
    if (more || (!known && !(barred && link.transport === "sse"))) subscribe(link, channel);
    else if (on && known.shown !== JSON.stringify(state)) {
      known.shown = JSON.stringify(state);
      known.request = say(link, { type: "presence", channel, state });
    }
  }
  for (const [channel, { stage }] of subscriptions) {
    if (s.channels.has(channel)) continue;
    if (stage === "on" || stage === "asked") say(link, { type: "unsubscribe", channel });
    subscriptions.delete(channel);
    link.views.delete(channel);
  }
}

function subscribe(link: Link, channel: string): void {
  const { position: since, presence = false, state } = s.channels.get(channel) ?? {};
  const frame = {
    type: "subscribe",
    channel,
    since,
    presence: presence || undefined,
    state: state ?? undefined,
  };
  const shown = JSON.stringify(state ?? null);
  link.subscriptions.set(channel, { stage: "asked", request: say(link, frame), presence, shown });
}

/** Sends the requests that this connection has not carried yet. */
export function ask(link: Link): void {
  for (const [id, { later, frame }] of s.requests) {
    if (later || link.sent.has(id)) continue;
    link.sent.add(id);
    link.queue.push(frame);
  }
}

/** What could not be done is asked once more. */
export function again(): void {
  for (const request of s.requests.values()) request.later = false;
  for (const { subscriptions } of links(s)) {
    for (const [channel, { stage }] of subscriptions) {
      if (stage === "later") subscriptions.delete(channel);
    }
  }
}

/** Answers a request, and forgets it. */
export function settle(id: number, answer: Published | Page | Refusal): void {
  const request = s.requests.get(id);
  if (request) effects.push({ do: "settle", key: request.key, answer });
  s.requests.delete(id);
  for (const link of links(s)) link.sent.delete(id);
}

/** Asks for something, so that an answer, or none, tells whether the connection lives. */
export function probe(link: Link): void {
  if (link.probe) return;
  for (const [channel, { stage }] of link.subscriptions) {
    const since = s.channels.get(channel)?.position;
    if (stage !== "on" || !since) continue;
    link.probe = say(link, { type: "history", channel, since, limit: 1 });
    link.dies = Math.min(link.dies, now + PROBE);
    return;
  }
  link.proved = true;
}

/** Takes what was said about channels and requests. */
export function hear(link: Link, frame: ServerFrame, posted?: boolean): void {
  const { id } = frame as { id?: number };
  if (id && id === link.probe) return answered(link, frame, posted);
  switch (frame.type) {
    case "event":
      return take(link, frame);
    case "subscribed":
      return subscribed(link, frame);
    case "unsubscribed":
      if (!id) refuse(link, frame.channel, frame.code ?? frame.type, "the gateway ended it");
      return;
    case "presence":
      return see(link, frame);
    case "reset":
      return reset(link, frame);
    case "published":
    case "history":
      return settle(id as number, frame);
    case "error":
      return refused(link, frame);
  }
}

/** Each connection delivers without holes from where it began, so what is ahead of all is the next. */
function take(link: Link, { type: _, ...message }: Message & { type: string }): void {
  const { channel, position, time } = message;
  const reading = s.channels.get(channel);
  const stage = link.subscriptions.get(channel)?.stage;
  // A socket keeps the order: before the answer it can only be of a subscription that was given up.
  const ours = stage === "on" || (stage === "asked" && link.transport === "sse");
  if (!reading || !ours) return;
  const { past, floor, position: held } = reading;
  const place = compare(held, position);
  if (place === "held" || (place === "foreign" && s.next && link !== s.next)) return;
  if (past && compare(past, position) !== "foreign") return;
  if (compare(floor, position) === "held") return;
  reading.position = position;
  effects.push({ do: "deliver", message });
  if (now - (link.readyAt ?? NEVER) <= REPLAY) return;
  const delay = now - time;
  count("events");
  sampled(s.stats, delay, dice);
  if (s.clock.low === -NEVER) s.clock.high = Math.min(s.clock.high, delay);
}

function subscribed(link: Link, frame: ServerFrame & { type: "subscribed" }): void {
  const { channel, id, position, members, count } = frame;
  const known = link.subscriptions.get(channel);
  if (!known || (id && id !== known.request)) return;
  begins(known, channel, position);
  if (members || count !== undefined) {
    link.views.delete(channel);
    see(link, frame);
  }
}

/** A subscription holds; a channel that begins now begins at `position`. */
export function begins(known: Subscription, channel: string, position?: string): void {
  const reading = s.channels.get(channel);
  known.stage = "on";
  if (reading) reading.position ||= position;
}

function see(link: Link, { channel, ...news }: PresenceNews & { channel: string }): void {
  if (!link.subscriptions.has(channel)) return;
  link.views.set(channel, fold(link.views.get(channel) ?? NOBODY, news));
  if (link === s.link) reveal(channel);
}

/** Shows who is there as the serving connection knows it. */
export function reveal(channel: string): void {
  const view = s.link?.views.get(channel);
  if (!view || !s.channels.get(channel)?.presence) return;
  const change = difference(s.shown.get(channel) ?? NOBODY, view);
  s.shown.set(channel, view);
  if (change) effects.push({ do: "presence", channel, change });
}

function reset(link: Link, { type, channel, position, reason }: ServerFrame & { type: "reset" }) {
  const reading = s.channels.get(channel);
  if (!reading) return;
  const { position: held, past } = reading;
  if (s.next) {
    // While two connections read the channel, the newer one knows better, and tells once.
    if (link !== s.next && s.next.subscriptions.get(channel)?.stage === "on") return;
    if (compare(held, position) === "held") return;
    if (past && compare(past, position) !== "foreign") return;
  }
  if (compare(held, position) === "foreign") reading.past = held;
  reading.position = position;
  count("resets");
  emit({ type, channel, position, reason });
}

/** The probe's answer. */
function answered(link: Link, frame: ServerFrame, posted?: boolean): void {
  link.proved = true;
  link.probe = undefined;
  if (!posted) return;
  const held = frame.type === "history" && s.channels.get(frame.channel)?.position;
  // Where the log is further than the stream, what is missing has to come on the stream in time.
  if (held && compare(held, (frame as Page).position) !== "held") return;
  link.dies = now + 2 * link.heartbeat;
}

function refused(link: Link, { id = -1, code, message, ...frame }: Refusal): void {
  const request = s.requests.get(id);
  const busy = ["unavailable", "node_full"].includes(code);
  const late =
    busy ||
    (code === "token_expired" && s.settings.refreshable) ||
    (code === "limit_exceeded" && request?.frame.type === "publish");
  if (late) s.alarms.again = Math.min(s.alarms.again, now + UNAVAILABLE * (0.5 + dice));
  if (request) {
    if (!late) return settle(id, { id, code, message, ...frame });
    link.sent.delete(id);
    request.later = true;
    return;
  }
  if (id === s.reported) {
    if (code === "unknown_type") s.alarms.report = NEVER;
    return;
  }
  for (const [channel, known] of link.subscriptions) {
    // A presence frame's refusal: the channel is read all the same.
    if (known.request !== id || known.stage === "on") continue;
    if (late) known.stage = "later";
    else if (code !== "already_subscribed") refuse(link, channel, code, message);
    // The answer to an earlier request got lost. Without a position it is not known where it began.
    else if (s.channels.get(channel)?.position) known.stage = "on";
    else {
      say(link, { type: "unsubscribe", channel });
      subscribe(link, channel);
    }
    return;
  }
  // What was given up meanwhile needs no answer; what comes before the welcome, the close tells.
  if (code !== "not_subscribed" && link.readyAt) emit({ type: "error", code, message });
}

function refuse(link: Link, channel: string, code: string, message: string): void {
  const known = link.subscriptions.get(channel);
  if (!known) return;
  known.stage = "refused";
  const reading = s.channels.get(channel);
  if (reading) reading.barred = true;
  emit({ type: "error", code, message, channel });
}

/** Sends as much as may be sent now. */
export function flush(link: Link): void {
  const { rate, burst } = s.settings;
  const { queue } = link;
  const frames: ClientFrame[] = [];
  link.paid = Math.max(link.paid, now - (burst * 1000) / rate);
  for (; queue.length && link.paid < now; link.paid += 1000 / rate) {
    frames.push(queue.shift() as ClientFrame);
  }
  if (frames.length) effects.push({ do: "send", link: link.id, frames });
}
