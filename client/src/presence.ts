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
  const { members: all, joined = [], updated = [], left = [], count } = news;
  const told = [...(all ?? []), ...joined, ...updated];
  // Nothing but a count that does not fit: the channel has become too large to be listed.
  if (!all && !told.length && !left.length && count !== undefined && count !== view.members.size) {
    return { members: new Map(), count };
  }
  const members = new Map(all ? [] : view.members);
  for (const member of told) members.set(member.session, member);
  for (const { session } of left) members.delete(session);
  return { members, count: count ?? members.size };
}

/** What those are told who saw `before`; nothing if nothing changed. */
export function difference(before: View, after: View): PresenceChange | undefined {
  const [was, is] = [before.members, after.members];
  const members = [...is.values()];
  // Who is only counted in one of them has neither come nor gone.
  const listed = before.count === was.size && after.count === is.size;
  const joined = members.filter(({ session }) => listed && !was.has(session));
  const updated = members.filter((member) => {
    const known = was.get(member.session);
    return listed && known && looks(known) !== looks(member);
  });
  const left = [...was.values()].filter(({ session }) => listed && !is.has(session));
  const changed = joined.length + updated.length + left.length;
  if (changed || before.count !== after.count || was.size !== is.size)
    return { joined, updated, left, members, count: after.count };
}

function looks({ user, info, state }: Member): string {
  return JSON.stringify([user, info, state]);
}
