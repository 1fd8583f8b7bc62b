// One rollout: to whom, how far, what it waits for, what can be done, how its guardrails and latencies are.
import { type Child, h } from "../dom.ts";
import type { Arm, Dashboard, Flag } from "../model.ts";
import { possible } from "../orders.ts";
import {
  ago,
  clock,
  listed,
  many,
  milliseconds,
  percent,
  sentence,
  span,
  waiting,
} from "../words.ts";
import { closest, figure, guardrails, overTime } from "./guardrails.ts";

const STATUS: Record<Flag["status"], [sign: string, word: string]> = {
  pending: ["○", "not begun"],
  running: ["▶", "running"],
  paused: ["❚❚", "paused"],
  completed: ["✓", "completed"],
  rolled_back: ["↩", "rolled back"],
  stopped: ["■", "stopped"],
  failed: ["✕", "emergency stop"],
};

export function rollout(flag: Flag, data: Dashboard, picked: string | undefined): HTMLElement {
  const { component } = flag;
  const verdicts = data.verdicts[component] ?? [];
  const moments = data.series[component] ?? [];
  const chosen = verdicts.find((one) => one.name === picked) ?? closest(verdicts);
  const [sign, word] = STATUS[flag.status];
  // Figures are of the transport; other rollouts have none of their own.
  const mine =
    component in data.measured || data.flags.length === 1 || component === "websocket-transport";
  const changed = [flag.changedBy && `by ${flag.changedBy}`, ago(flag.changedAt, data.now)]
    .filter(Boolean)
    .join(", ");
  return h(
    "article.card.rollout",
    {
      "data-key": component,
      id: `rollout-${component}`,
      tabindex: "-1",
      "aria-labelledby": `name-${component}`,
    },
    h(
      "header",
      {},
      h("h2", { id: `name-${component}` }, component),
      flag.from &&
        h("span.sides", {}, h("span.old", {}, flag.from), " → ", h("span.new", {}, flag.to)),
      h(
        "span.status",
        { "data-status": flag.status },
        h("span", { "aria-hidden": "true" }, sign),
        ` ${word}`,
      ),
      h(
        "span.soft",
        {},
        `version ${many(flag.version)}, epoch ${flag.epoch}${changed ? `, changed ${changed}` : ""}`,
      ),
    ),
    controls(flag, data),
    h("div.pair", {}, share(flag, data, mine), course(flag, data)),
    mine &&
      moments.length > 1 &&
      h(
        "details",
        { "data-key": "shares" },
        h("summary", {}, "The three percentages over time"),
        figure(
          `${component}/shares`,
          "target, assigned users and live connections over the last 30 minutes",
          [
            ["target", "dots"],
            ["assigned users", "line-old"],
            ["live connections", "line-new"],
          ],
        ),
      ),
    h("h3", {}, "Guardrails"),
    measuredLine(flag, data),
    guardrails(component, verdicts, moments, chosen?.name ?? ""),
    overTime(component, chosen, moments),
    latency(flag, data),
  );
}

function controls(flag: Flag, data: Dashboard): Child {
  if (!data.mayOperate) {
    return h(
      "p.rights",
      {},
      "You can look, and change nothing: your token lacks the scope admin. ",
      h("button", { type: "button", "data-do": "token" }, "Use another token"),
    );
  }
  return h(
    "div.controls",
    { role: "group", "aria-label": `Controls of ${flag.component}` },
    ...possible(flag, data.now).map((order) =>
      h(
        `button${order.grave ? ".grave" : ""}`,
        {
          type: "button",
          "data-key": order.verb,
          "data-do": "order",
          "data-verb": order.verb,
          "data-component": flag.component,
          "aria-haspopup": "dialog",
        },
        `${order.label} …`,
      ),
    ),
  );
}

function share(flag: Flag, data: Dashboard, mine: boolean): HTMLElement {
  const figures = mine ? data.figures : null;
  const target = figures?.target ?? flag.effective;
  const bar = (name: string, what: string, value: number | null, note: string) =>
    h(
      "div.share",
      {},
      h("dt", {}, what),
      h("dd", {}, h("b", {}, percent(value)), h("small", {}, note)),
      h(
        "div.track",
        { "aria-hidden": "true" },
        h("span", { class: name, style: `width:${Math.min(100, value ?? 0)}%` }),
        h("i", { style: `left:${Math.min(100, target)}%` }),
      ),
    );
  const on = figures?.websocket;
  const all = on == null ? null : on + (figures?.sse ?? 0);
  const moving = figures
    ? [
        figures.behind ? `${many(figures.behind)} still to move to ${flag.to}` : "",
        figures.ahead ? `${many(figures.ahead)} still to come back to ${flag.from}` : "",
        figures.pending ? `${many(figures.pending)} wait to be asked` : "",
        figures.plain ? `${many(figures.plain)} cannot be asked (plain EventSource)` : "",
      ].filter(Boolean)
    : [];
  return h(
    "section.shares",
    {},
    h("h3", {}, "Rolled out to"),
    h(
      "dl",
      {},
      bar("target", "Target", target, "of eligible users"),
      figures &&
        bar(
          "assigned",
          "Assigned users",
          figures.assigned,
          figures.users == null ? "" : `of ${many(figures.users)} users`,
        ),
      figures &&
        bar(
          "live",
          "Live connections",
          figures.live,
          all == null ? "" : `${many(on)} of ${many(all)}`,
        ),
    ),
    h(
      "p.soft",
      {},
      moving.length ? sentence(listed(moving)) : figures ? "Everybody is where they belong." : "",
    ),
    h("p.whom", {}, ...whom(flag)),
  );
}

function whom(flag: Flag): Child[] {
  const { environment, userGroups, allow, deny } = flag.conditions;
  const only = [
    environment.length ? `in ${listed(environment)}` : "",
    userGroups.length
      ? `of the group${userGroups.length > 1 ? "s" : ""} ${listed(userGroups)}`
      : "",
  ].filter(Boolean);
  const named = [
    allow.length ? `${many(allow.length)} by name on the new side` : "",
    deny.length ? `${many(deny.length)} by name kept on the old side` : "",
  ].filter(Boolean);
  return [
    h("b", {}, "Eligible: "),
    only.length ? `users ${only.join(" ")}` : "all users",
    named.length ? `; ${named.join(", ")}` : "",
    ". ",
    flag.fallback === false ? h("span.loud", {}, "No fallback to the old side. ") : "",
    h(
      "span.soft",
      {},
      [flag.algorithm, flag.salt && `salt ${flag.salt}`].filter(Boolean).join(", "),
    ),
  ];
}

function course(flag: Flag, data: Dashboard): HTMLElement {
  const going = flag.status === "running" || flag.status === "paused";
  const current = flag.step === null ? undefined : flag.steps[flag.step];
  const bake =
    current && current.bakeSeconds > 0
      ? Math.min(1, flag.bakedMs / (1000 * current.bakeSeconds))
      : null;
  const next = flag.steps.find((step) => step.percentage > flag.effective);
  const routine = flag.holds.every((hold) => /^(bakes|waits) /.test(waiting(hold)));
  const left = flag.coolUntil !== null && data.now !== null ? flag.coolUntil - data.now : 0;
  const validation = {
    asked: "Both sides are being compared.",
    passed: "Both sides deliver the same.",
    failed: `The sides deliver differently: ${flag.validation.differs || "see the history"}`,
  }[flag.validation.state];
  return h(
    "section.course",
    {},
    h("h3", {}, "Schedule"),
    flag.steps.length
      ? h(
          "ol.steps",
          {},
          ...flag.steps.map((step, index) => {
            const done = step.percentage < flag.effective || flag.status === "completed";
            const here = going && index === flag.step;
            return h(
              "li",
              { "data-done": done && !here, "aria-current": here ? "step" : null },
              h("b", {}, percent(step.percentage)),
              h("small", {}, span(1000 * step.bakeSeconds), step.approval && " + approval"),
            );
          }),
        )
      : h("p.soft", {}, "None: the percentage is set by hand."),
    going &&
      bake !== null && [
        h(
          "p",
          {},
          `Baked ${span(flag.bakedMs)} of ${span(1000 * (current?.bakeSeconds ?? 0))}${flag.approved ? ", approved" : ""}.`,
        ),
        h(
          "div.track",
          { "aria-hidden": "true" },
          h("span.baked", { style: `width:${(100 * bake).toFixed(1)}%` }),
        ),
      ],
    flag.holds.length > 0 &&
      going && [
        h(
          "p",
          {},
          h(
            "b",
            {},
            routine && next ? `Before ${percent(next.percentage)} it` : "It does not go on",
          ),
        ),
        h("ul.holds", {}, ...flag.holds.map((hold) => h("li", {}, waiting(hold)))),
      ],
    validation && h(`p${flag.validation.state === "failed" ? ".loud" : ".soft"}`, {}, validation),
    flag.reason && h("p", {}, h("b", {}, "Last reason: "), sentence(flag.reason)),
    left > 0 &&
      h(
        "p",
        {},
        `It cools down until ${clock(flag.coolUntil, data.now)}, for another ${span(left)}.`,
      ),
    flag.after.length > 0 && h("p.soft", {}, `Goes up only after ${listed(flag.after)}.`),
  );
}

function measuredLine(flag: Flag, data: Dashboard): Child {
  const measured = data.measured[flag.component];
  if (!measured) return null;
  const kept = data.asOf[flag.component];
  if (kept) {
    const text = `As judged at ${clock(kept.time, data.now)}, when it ended (${kept.action}); nobody judges it now`;
    return h("p.soft", {}, sentence(text));
  }
  const old = measured.at !== null && data.now !== null ? data.now - measured.at : null;
  const parts = [
    old === null ? "" : `counted ${ago(measured.at, data.now)}`,
    measured.nodes === null
      ? ""
      : `by ${many(measured.nodes)} node${measured.nodes === 1 ? "" : "s"}`,
  ].filter(Boolean);
  return h(`p${old !== null && old > 10_000 ? ".loud" : ".soft"}`, {}, sentence(parts.join(" ")));
}

function latency(flag: Flag, data: Dashboard): Child {
  const measured = data.measured[flag.component];
  const arms: [Arm, Arm] | null = measured ? [measured.new, measured.control] : null;
  if (!arms || !arms.some((arm) => arm.latency)) return null;
  const row = (what: string, look: string, { latency }: Arm) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, h("span.key", {}, h(`i.${look}`, { "aria-hidden": "true" }), what)),
      ...[latency?.p50, latency?.p95, latency?.p99].map((one) => h("td", {}, milliseconds(one))),
      h("td", {}, many(latency?.count)),
    );
  return h(
    "section.latency",
    { "data-key": "latency" },
    h("h3", {}, "Delivery latency"),
    h(
      "div.pair",
      {},
      figure(
        `${flag.component}/latency`,
        "share of deliveries by latency; the table has the percentiles",
        [
          [`new (${flag.to})`, "line-new"],
          [`control (${flag.from})`, "line-old"],
          ...(flag.slowAboveMs === null
            ? []
            : [
                [`slow, above ${milliseconds(flag.slowAboveMs)}`, "dash-alarm"] as [string, string],
              ]),
        ],
      ),
      h(
        "table.plain",
        {},
        h("caption.unseen", {}, "Delivery latency of both arms"),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ...["Arm", "p50", "p95", "p99", "timed"].map((one) => h("th", { scope: "col" }, one)),
          ),
        ),
        h(
          "tbody",
          {},
          row(`new (${flag.to})`, "line-new", arms[0]),
          row(`control (${flag.from})`, "line-old", arms[1]),
        ),
      ),
    ),
  );
}
