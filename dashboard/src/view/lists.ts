// What is not of one rollout: connections by transport and node, alerts, and what has been done and why.
import { type Child, h } from "../dom.ts";
import type { Alert, Dashboard, Entry, Figures } from "../model.ts";
import { ago, clock, listed, many, percent, sentence, span } from "../words.ts";

export function connections(data: Dashboard): Child {
  const { figures } = data;
  if (!figures) return null;
  const most = Math.max(1, ...figures.nodes.map((node) => node.websocket + node.sse));
  const row = (
    name: string,
    websocket: number,
    sse: number,
    plain: number,
    users: number | null,
    at: number | null,
  ) => {
    const old = at !== null && data.now !== null ? data.now - at : 0;
    return h(
      "tr",
      { "data-key": name },
      h(
        "th",
        { scope: "row" },
        name,
        old > 5_000 && h("small.loud", {}, ` ${span(old)} old`),
        h(
          "span.bars",
          { "aria-hidden": "true" },
          h("span.live", { style: `width:${(100 * websocket) / most}%` }),
          h("span.sse", { style: `width:${(100 * sse) / most}%` }),
        ),
      ),
      h("td", {}, many(websocket)),
      h("td", {}, many(sse), plain > 0 && h("small", {}, ` (${many(plain)} plain)`)),
      h("td", {}, many(users)),
    );
  };
  const all = (figures.websocket ?? 0) + (figures.sse ?? 0);
  return h(
    "section.card",
    { "data-key": "connections" },
    h("h2", {}, "Connections"),
    h(
      "p",
      {},
      h("b", {}, many(all)),
      ` in all: ${many(figures.websocket)} WebSocket (${percent(of(figures, all))}), ${many(figures.sse)} SSE.`,
    ),
    h(
      "table.plain",
      {},
      h("caption.unseen", {}, "Connections by node and transport"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ...["Node", "WebSocket", "SSE", "Users"].map((one) => h("th", { scope: "col" }, one)),
        ),
      ),
      h(
        "tbody",
        {},
        ...figures.nodes.map((one) =>
          row(one.node, one.websocket, one.sse, one.plain, one.users, one.at),
        ),
      ),
    ),
    figures.nodes.length === 0 && h("p.empty", {}, "No node has said its figures."),
  );
}

const of = (figures: Figures, all: number) =>
  all > 0 ? (100 * (figures.websocket ?? 0)) / all : null;

export function alerts(data: Dashboard): Child {
  const open = data.alerts.filter((alert) => alert.by === null);
  const seen = data.alerts.filter((alert) => alert.by !== null);
  return h(
    "section.card",
    { "data-key": "alerts" },
    h("h2", {}, "Alerts", open.length > 0 && h("span.count", {}, ` ${open.length} open`)),
    open.length === 0 && h("p.empty", {}, "None is open."),
    h("ul.alerts", {}, ...open.map((one) => alert(one, data))),
    seen.length > 0 &&
      h(
        "details",
        { "data-key": "seen" },
        h("summary", {}, `${seen.length} acknowledged`),
        h("ul.alerts", {}, ...seen.map((one) => alert(one, data))),
      ),
  );
}

function alert(one: Alert, data: Dashboard): HTMLElement {
  return h(
    "li",
    { "data-key": one.id, "data-urgent": one.urgent && one.by === null },
    h(
      "div",
      {},
      one.urgent && h("strong", {}, one.by === null ? "Urgent: " : "Was urgent: "),
      sentence(one.text),
      h(
        "small",
        {},
        [one.component, clock(one.at, data.now), ago(one.at, data.now)].filter(Boolean).join(" · "),
        one.by !== null &&
          ` · acknowledged by ${one.by || "somebody"} ${ago(one.acknowledgedAt, data.now)}`,
        one.failed.length > 0 && h("span.loud", {}, ` · not told: ${listed(one.failed)}`),
      ),
    ),
    one.by === null &&
      data.mayOperate &&
      h(
        "button",
        {
          type: "button",
          "data-do": "acknowledge",
          "data-id": one.id,
          "aria-label": `Acknowledge: ${one.text}`,
        },
        "Acknowledge",
      ),
  );
}

export function history(data: Dashboard): Child {
  return h(
    "section.card",
    { "data-key": "history" },
    h("h2", {}, "History"),
    data.history.length === 0
      ? h("p.empty", {}, "Nothing has been done yet.")
      : h("ol.history", {}, ...data.history.map((one, index) => line(one, data, index))),
  );
}

function line(one: Entry, data: Dashboard, index: number): HTMLElement {
  const [before, after] = one.percentage;
  const [was, is] = one.status.map((status) => status.replace("_", " "));
  const moved =
    before != null && after != null && before !== after
      ? `${percent(before)} → ${percent(after)}`
      : "";
  const turned = was && is && was !== is ? `${was} → ${is}` : "";
  const told = sentences(one.figures);
  return h(
    "li",
    {
      "data-key": `${one.component} ${one.version ?? ""} ${one.time ?? index} ${one.action}`,
      "data-action": one.action,
    },
    h(
      "time",
      { datetime: one.time === null ? null : new Date(one.time).toISOString() },
      clock(one.time, data.now),
    ),
    h(
      "div",
      {},
      h("b", {}, done(one)),
      ` ${one.component} `,
      h("span.soft", {}, `by ${one.by || "somebody"}`),
      (moved || turned) && h("span.moved", {}, [moved, turned].filter(Boolean).join(", ")),
      one.reason && h("p", {}, sentence(one.reason)),
      told.length > 0 &&
        h(
          "details",
          { "data-key": "figures" },
          h("summary", {}, "What was measured"),
          h("ul", {}, ...told.map((text) => h("li", {}, text))),
        ),
    ),
  );
}

/** What was done, where the gateway's word for it is that it looked. */
function done({ action, percentage: [before, after], status }: Entry): string {
  if (action !== "look") return action || "changed";
  if (status[1] === "rolled_back") return "rollback";
  return (after ?? 0) > (before ?? 0) ? "step up" : status[1] === "completed" ? "complete" : "look";
}

/** The sentences of the verdicts that were kept with an entry, in whatever shape they were kept. */
export function sentences(figures: unknown): string[] {
  const found: string[] = [];
  const walk = (value: unknown, depth: number): void => {
    if (depth > 6 || typeof value !== "object" || value === null) return;
    const its = (value as { summary?: unknown }).summary;
    if (typeof its === "string" && its) found.push(its);
    else for (const one of Object.values(value)) walk(one, depth + 1);
  };
  walk(figures, 0);
  return found;
}
