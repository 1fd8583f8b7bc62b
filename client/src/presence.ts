/**
 * Who is in a channel, as one connection was told, and what changed between two such views. Pure; two
 * connections of a session each keep a view of their own, so that news which cross do not mix.
 */
import type { Member, PresenceNews } from "./protocol.js";

/** What one connection knows. A channel that is too large is only counted. */
export interface View {
  readonly members: ReadonlyMap<string, Member>;
  readonly count: number;
}

/** What changed, and how it is now. `members` is empty where a large channel is only counted. */
export interface PresenceChange<S = unknown> {
  readonly joined: readonly Member<S>[];
  readonly updated: readonly Member<S>[];
  readonly left: readonly Member<S>[];
  readonly members: readonly Member<S>[];
  readonly count: number;
}

export const NOBODY: View = { members: new Map(), count: 0 };

/** The view after the news. */
export function fold(view: View, news: PresenceNews): View {
  const { joined = [], updated = [], left = [], count } = news;
  if (!news.members && !joined.length && !updated.length && !left.length) {
    return count === undefined || count === view.members.size
      ? view
      : { members: new Map(), count };
  }
  const members = new Map(news.members ? [] : view.members);
  for (const member of [...(news.members ?? []), ...joined, ...updated]) {
    members.set(member.session, member);
  }
  for (const { session } of left) members.delete(session);
  return { members, count: count ?? members.size };
}

/** What those are told who saw `before`; nothing if nothing changed. */
export function difference(before: View, after: View): PresenceChange | undefined {
  if (before === after) return;
  const listed = (view: View) => view.count === view.members.size;
  const both = listed(before) && listed(after);
  const joined: Member[] = [];
  const updated: Member[] = [];
  for (const member of both ? after.members.values() : []) {
    const known = before.members.get(member.session);
    if (!known) joined.push(member);
    else if (known !== member && looks(known) !== looks(member)) updated.push(member);
  }
  const left = both
    ? [...before.members.values()].filter((m) => !after.members.has(m.session))
    : [];
  const same = !joined.length && !updated.length && !left.length && before.count === after.count;
  if (same && listed(before) === listed(after)) return;
  return { joined, updated, left, members: [...after.members.values()], count: after.count };
}

function looks({ user, info, state }: Member): string {
  return JSON.stringify([user, info, state]);
}
