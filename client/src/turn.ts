/**
 * One step under way: what all parts of the machine write to while it lasts. A step is synchronous and
 * begins with `turn`, so nothing of one client's is ever seen in another's.
 */
import type { ClientFrame } from "./protocol.js";
import type { Counter } from "./report.js";
import type { ClientEvent, Effect, Input, Link, State } from "./state.js";

export let s: State;
export let now: number;
export let dice: number;
export let effects: Effect[];

export function turn(state: State, input: Input): void {
  s = state;
  ({ now, dice } = input);
  effects = [];
}

export function emit(event: ClientEvent): void {
  effects.push({ do: "emit", event });
}

export function close(link: Link): void {
  effects.push({ do: "close", link: link.id });
}

export function send(link: Link, ...frames: ClientFrame[]): void {
  effects.push({ do: "send", link: link.id, frames });
}

export function count(what: Counter): void {
  s.stats[what] = (s.stats[what] ?? 0) + 1;
}

export function links({ link, next }: Readonly<State>): Link[] {
  return [link, next].filter((each) => each !== undefined);
}
