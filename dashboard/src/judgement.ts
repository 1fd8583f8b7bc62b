// Whether to worry, and why: what the gateway said in, one line in words out. Pure.
//
// It invents no limits of its own. A guardrail is broken when the gateway says so; this only decides
// which of all that is true comes first.
import { type Dashboard, ENDS, type Flag, type Verdict } from "./model.ts";
import { ago, called, listed, many, percent, sentence, span, waiting } from "./words.ts";

/** From calm to loud. */
export const LEVELS = ["well", "note", "worry", "alarm"] as const;
export type Level = (typeof LEVELS)[number];

export interface Judgement {
  level: Level;
  /** One or two words. */
  word: string;
  /** Which rollout; none when it is about all. */
  component: string;
  why: string;
  /** What follows, or what to do. */
  next: string;
}

/** Data that is older is not how things are. */
export const STALE_MS = 5_000;

/** An end is news for so long, even where nothing cools down and nobody was told. */
const NEWS_MS = 10 * 60_000;

/** All that is true, the most worrying first; never empty. */
export function judge(said: Dashboard): Judgement[] {
  const found = [...said.flags.flatMap((flag) => ofFlag(flag, said)), ...ofAll(said)];
  // Equal levels stay in the order they were found in.
  found.sort((a, b) => LEVELS.indexOf(b.level) - LEVELS.indexOf(a.level));
  return found.length > 0 ? found : [nothing(said)];
}

function nothing(said: Dashboard): Judgement {
  const why = said.flags.length
    ? "No rollout has begun; everybody is on the old side."
    : "There is no rollout; nothing is being moved.";
  return { level: "well", word: "All is well", component: "", why, next: "" };
}

function ofAll(said: Dashboard): Judgement[] {
  const found: Judgement[] = [];
  // In the first seconds nobody can have looked yet.
  const begun = (flag: Flag) => (said.now ?? 0) - (flag.changedAt ?? 0) > 10_000;
  const going = said.flags
    .filter((flag) => flag.status === "running" && begun(flag))
    .map((flag) => flag.component);
  if (said.storeUnreachableMs != null) {
    found.push({
      level: "worry",
      word: "Cut off",
      component: "",
      why: `${said.node || "This node"} cannot reach the store since ${span(said.storeUnreachableMs)}: it shows what it last knew.`,
      next: "Increases are refused. A stop takes effect on this node at once, and on the others when the store is back.",
    });
  }
  if (said.evaluator === null && going.length > 0 && said.storeUnreachableMs == null) {
    found.push({
      level: "worry",
      word: "Nobody watches",
      component: "",
      why: `No node evaluates the guardrails, so nothing would turn ${listed(going)} back by itself.`,
      next: "Another node takes over within 10 s; if none does, look at the nodes and the store, or pause.",
    });
  }
  const open = said.alerts.filter((alert) => alert.urgent && alert.by == null);
  // What an alert tells of a rollout that still shows it has been said above.
  const shown = new Set(said.flags.filter(isBad(said)).map((flag) => flag.component));
  const news = open.filter((alert) => !shown.has(alert.component));
  const [first] = news;
  if (first) {
    const more = news.length > 1 ? ` (and ${news.length - 1} more)` : "";
    found.push({
      level: "worry",
      word: "Alert",
      component: first.component,
      why: sentence(first.text) + more,
      next: `Nobody has acknowledged it; it came ${ago(first.at, said.now)}.`,
    });
  }
  return found;
}

const isBad = (said: Dashboard) => (flag: Flag) =>
  ENDS.includes(flag.status) ||
  (said.verdicts[flag.component] ?? []).some((verdict) => verdict.demand !== "nothing");

function ofFlag(flag: Flag, said: Dashboard): Judgement[] {
  const found: Judgement[] = [];
  const say = (level: Level, word: string, why: string, next = "") =>
    found.push({ level, word, component: flag.component, why, next });
  const verdicts = said.verdicts[flag.component] ?? [];
  const over = ENDS.includes(flag.status);
  if (over) {
    say(...ending(flag, said));
  } else {
    const back = verdicts.filter((verdict) => verdict.demand === "roll_back");
    const hold = verdicts.filter((verdict) => verdict.demand === "hold");
    if (back.length > 0 && flag.effective > 0)
      say("alarm", "Broken", told(back), andThen(flag, said));
    else if (flag.validation.state === "failed") {
      const why = `The two sides deliver differently: ${flag.validation.differs || "see the history"}`;
      say("worry", "Holding", sentence(why), `It stays at ${percent(flag.effective)}.`);
    } else if (hold.length > 0 && flag.status !== "pending") {
      const next = `It stays at ${percent(flag.effective)} and goes on when that is over.`;
      say("worry", "Holding", told(hold), next);
    } else say(...going(flag, verdicts, said));
  }
  if (flag.unsaved) {
    const why = "The stop holds on this node only; the store could not be written.";
    say("worry", "Not saved", why, "Keep this node up, or repeat the stop on the others.");
  }
  return found.filter((one) => one.word !== "");
}

const told = (verdicts: Verdict[]) =>
  verdicts.map((one) => sentence(one.summary || `${called(one.name)} is broken`)).join(" ");

function andThen(flag: Flag, said: Dashboard): string {
  if (said.evaluator === null || said.storeUnreachableMs != null)
    return "Nobody turns it back by itself now: roll it back.";
  return flag.status === "running"
    ? "The gateway rolls it back by itself; if this still stands in a few seconds, roll it back by hand."
    : "Roll it back if the gateway has not done so in a few seconds.";
}

/** How those who have to come back are doing. */
function homecoming(flag: Flag, said: Dashboard): string {
  if (flag.status === "stopped") return `${percent(flag.effective)} of users keep the new side.`;
  const left = said.flags.length === 1 ? said.figures?.ahead : null;
  if (left == null) return "";
  if (left === 0) return `Everybody is back on ${flag.from}.`;
  return flag.stop === "stop-and-keep"
    ? `${many(left)} connections stay on ${flag.to} until they leave.`
    : `${many(left)} connections are still to come back to ${flag.from}.`;
}

function ending(flag: Flag, said: Dashboard): [Level, string, string, string] {
  const cooling = flag.coolUntil != null && said.now != null && flag.coolUntil > said.now;
  const unseen = said.alerts.some(
    (alert) => alert.urgent && alert.by == null && alert.component === flag.component,
  );
  const young = (said.now ?? 0) - (flag.changedAt ?? 0) < NEWS_MS;
  const fresh = cooling || unseen || young;
  const itself = /^gateway\b/.test(flag.changedBy);
  const by =
    flag.changedBy === "gateway" ? "by the gateway" : flag.changedBy && `by ${flag.changedBy}`;
  const when = [by, ago(flag.changedAt, said.now)].filter(Boolean).join(", ");
  const again =
    cooling && flag.coolUntil != null && said.now != null
      ? `It can start again in ${span(flag.coolUntil - said.now)}.`
      : "It can be started again.";
  const next = [homecoming(flag, said), again].filter(Boolean).join(" ");
  const reason = flag.reason ? `: ${ended(flag.reason)}` : ".";
  if (flag.status === "failed")
    return [fresh ? "alarm" : "note", "Emergency stop", `${when}${reason}`, next];
  if (flag.status === "stopped")
    return ["note", "Frozen", `at ${percent(flag.effective)} ${when}${reason}`, next];
  const because = flag.reason ? `${when}, because ${flag.reason}` : when;
  const level = !fresh ? "note" : itself || !by ? "alarm" : "worry";
  return [level, "Rolled back", ended(because), next];
}

/** With a full stop. */
const ended = (text: string) => (/[.!?]$/.test(text) ? text : `${text}.`);

/** How a rollout is that nothing is wrong with. */
function going(flag: Flag, verdicts: Verdict[], said: Dashboard): [Level, string, string, string] {
  const at = percent(flag.effective);
  const where =
    said.flags.length > 1 || said.figures?.live == null
      ? ""
      : `, ${percent(said.figures.live)} of connections`;
  const kept = verdicts.filter((one) => one.outcome === "passed").length;
  const early = verdicts.filter((one) => one.outcome === "unknown").length;
  const told = verdicts.filter((one) => one.outcome === "violated");
  const rails = [
    kept ? `${kept} guardrails kept` : "",
    early ? `${early} too early to tell` : "",
    told.length ? `${listed(told.map((one) => called(one.name)))} broken, only to be told` : "",
  ].filter(Boolean);
  const state = rails.length ? `${rails.join(", ")}.` : "Nothing is measured yet.";
  switch (flag.status) {
    case "pending":
      return ["well", "", "", ""];
    case "completed":
      return ["well", "All is well", `Everybody is on ${flag.to}: it is completed.`, ""];
    case "paused": {
      const by = flag.changedBy ? ` by ${flag.changedBy}` : "";
      const why = `at ${at}${where}${by}${flag.reason ? `: ${flag.reason}` : ""}`;
      return ["note", "Paused", ended(why), `${state} It goes on when somebody resumes it.`];
    }
    default: {
      if (!flag.enabled)
        return ["note", "Off", "It is switched off: everybody is on the old side.", ""];
      const asks = flag.holds.find((hold) => /approv/i.test(hold));
      if (asks) {
        return [
          "note",
          "Your turn",
          `${at}${where}. ${state}`,
          "It waits for somebody to approve of the next step.",
        ];
      }
      const next = flag.steps.find((step) => step.percentage > flag.effective);
      const to = next ? `Before ${percent(next.percentage)} it ` : "It ";
      const waits = flag.holds.length ? sentence(`${to}${listed(flag.holds.map(waiting))}`) : "";
      return ["well", "All is well", `${at} of users${where}. ${state}`, waits];
    }
  }
}
