// The first thing that is seen: whether to worry and why, how old that is, and what is in the way of seeing.
import type { Way } from "../feed.ts";
import { type Judgement, STALE_MS } from "../judgement.ts";
import type { Dashboard } from "../model.ts";
import { type Child, h } from "../dom.ts";
import { span } from "../words.ts";

/** A sign for who cannot tell colours apart; it is read by nobody. */
const SIGNS = { well: "✓", note: "i", worry: "!", alarm: "✕", blind: "?" };

export function isStale(age: number | null): boolean {
  return age !== null && age > STALE_MS;
}

export function banner(found: Judgement[], way: Way, age: number | null): Child[] {
  const [first, ...others] = found;
  const stale = isStale(age) || way.by === "denied";
  if (!first) return [blind(way, age, null)];
  if (stale) return [blind(way, age, first)];
  const also = others.filter((one) => one.level === "alarm" || one.level === "worry");
  return [
    said(first),
    also.length > 0 &&
      h("ul.also", { "aria-label": "Also" }, ...also.map((one) => h("li", {}, said(one)))),
  ];
}

function said(one: Judgement): HTMLElement {
  return h(
    "div.banner",
    { "data-level": one.level },
    h("span.sign", { "aria-hidden": "true" }, SIGNS[one.level]),
    h(
      "div",
      {},
      h(
        "p.line",
        {},
        h("strong", {}, one.word),
        one.component && [" ", h("span.which", {}, one.component)],
        " ",
        one.why,
      ),
      one.next && h("p.next", {}, one.next),
    ),
  );
}

function blind(way: Way, age: number | null, last: Judgement | null): HTMLElement {
  const [word, why, next] = inTheWay(way, age);
  const known = last
    ? ` Last known: ${last.word}${last.component ? ` (${last.component})` : ""} – ${last.why}`
    : "";
  return h(
    "div.banner",
    { "data-level": age === null && way.by !== "denied" && !way.problem ? "note" : "blind" },
    h("span.sign", { "aria-hidden": "true" }, SIGNS.blind),
    h("div", {}, h("p.line", {}, h("strong", {}, word), " ", why), h("p.next", {}, next + known)),
  );
}

function inTheWay(way: Way, age: number | null): [string, string, string] {
  if (way.by === "denied") {
    return way.status === 401
      ? ["Not signed in", `The gateway does not know you: ${way.problem}.`, "Give a token below."]
      : [
          "Not allowed",
          `The token may not look at rollouts: ${way.problem}.`,
          "Give a token with the scope admin below.",
        ];
  }
  if (age === null) {
    return way.problem
      ? ["Nothing to see", `No data yet: ${way.problem}.`, "The page keeps asking."]
      : ["Looking …", "The gateway is being asked.", ""];
  }
  const problem = way.problem ? `: ${way.problem}` : "";
  return [
    "Not live",
    `What you see is ${span(age)} old${problem}.`,
    "This page does not know how things are now; it keeps asking.",
  ];
}

export function freshness(way: Way, age: number | null): HTMLElement {
  const how =
    way.by === "stream"
      ? "live"
      : way.by === "asking"
        ? "every 2 s"
        : way.by === "denied"
          ? "denied"
          : "no contact";
  const stale = isStale(age);
  const bad = stale || way.by === "denied" || (age === null && way.problem !== "");
  const old =
    age === null ? "no data yet" : stale ? `${span(age)} old` : `${Math.round(age / 1000)} s old`;
  const title =
    way.by === "asking" ? `The stream cannot be had (${way.problem}), so the page asks.` : null;
  return h(
    "span.fresh",
    { "data-stale": bad, title },
    h("span.dot", { "aria-hidden": "true" }),
    `${how}, ${old}`,
  );
}

export function where(data: Dashboard | null): Child[] {
  if (!data) return [];
  return [
    data.environment && h("span.badge", {}, data.environment),
    data.node && h("span", {}, "seen from ", h("b", {}, data.node)),
    data.evaluator != null &&
      h("span", {}, "evaluated by ", h("b", {}, data.evaluator || "a node")),
    data.evaluator === null &&
      data.flags.some((flag) => flag.status === "running") &&
      h("span.loud", {}, "evaluated by nobody"),
  ];
}
