// The page: holds what was last heard, draws it, and passes on what is asked of it.
import { Age } from "./age.ts";
import * as charts from "./charts.ts";
import { h, show } from "./dom.ts";
import { ask, Feed, token, type Way } from "./feed.ts";
import { type Judgement, judge } from "./judgement.ts";
import { type Dashboard, type Flag, read } from "./model.ts";
import { emergency, possible, result } from "./orders.ts";
import { bytes } from "./words.ts";
import { Confirmation } from "./view/dialog.ts";
import { closest } from "./view/guardrails.ts";
import { alerts, connections, history } from "./view/lists.ts";
import { rollout } from "./view/rollout.ts";
import { banner, freshness, isStale, where } from "./view/top.ts";

const part = (id: string): HTMLElement => {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
};

const age = new Age();
const picked = new Map<string, string>();
let data: Dashboard | null = null;
let found: Judgement[] = [];
let way: Way = { by: "nothing", problem: "" };
let saying: { text: string; level: string; until: number } | null = null;

const feed = new Feed(
  (said) => {
    data = read(said);
    found = judge(data);
    age.heard(data.now, Date.now(), data.node);
    draw();
  },
  (now) => {
    way = now;
    if (way.by === "denied") openToken(way.problem);
    else if (!tokenWanted && way.by !== "nothing") closeToken();
    draw();
  },
);

const confirmation = new Confirmation(document.body, {
  async look(component) {
    await feed.once();
    return data?.flags.find((flag) => flag.component === component);
  },
  say(text, level) {
    saying = { text, level, until: Date.now() + 15_000 };
    drawTop();
  },
  goTo(component) {
    const card = document.getElementById(`rollout-${component}`);
    card?.focus();
    card?.scrollIntoView({ block: "start" });
  },
});

let tokenWanted = false;

function openToken(message: string): void {
  tokenWanted = true;
  part("token").hidden = false;
  part("token-message").textContent = message ? `The gateway says: ${message}.` : "";
}

function closeToken(): void {
  tokenWanted = false;
  part("token").hidden = true;
}

function drawTop(): void {
  const now = Date.now();
  const old = age.at(now);
  const stale = isStale(old) || way.by === "denied";
  show(part("banner"), ...banner(found, way, old));
  show(part("fresh"), freshness(way, old));
  show(part("where"), ...where(data));
  document.documentElement.toggleAttribute("data-stale", stale && data !== null);
  if (saying && saying.until < now) saying = null;
  show(part("saying"), saying && h("p", { "data-level": saying.level }, saying.text));
  const level = stale ? "blind" : (found[0]?.level ?? "");
  const marks: Record<string, string> = { alarm: "✕ ", worry: "! ", blind: "? " };
  document.title = `${marks[level] ?? ""}${found[0]?.word ?? "Rollouts"} – Crossfade`;
  part("emergency").hidden = !data?.mayOperate || data.flags.length === 0;
}

function draw(): void {
  drawTop();
  if (!data) return;
  const said = data;
  const rollouts = said.flags.map((flag) => rollout(flag, said, picked.get(flag.component)));
  const none = h(
    "section.card",
    { "data-key": "none" },
    h("h2", {}, "No rollout"),
    h(
      "p",
      {},
      "Create one with ",
      h("code", {}, "crossfade rollout set websocket-transport 1"),
      " or ",
      h("code", {}, "PUT /api/migration/feature-flags/websocket-transport"),
      ".",
    ),
  );
  show(part("main"), ...(rollouts.length ? rollouts : [none]));
  show(part("side"), alerts(said), connections(said));
  show(part("below"), history(said));
  drawCharts(said);
}

function drawCharts(said: Dashboard): void {
  charts.sweep();
  for (const place of document.querySelectorAll<HTMLElement>("[data-drawing]")) {
    const [component = "", what] = place.dataset.drawing?.split("/") ?? [];
    // In what is folded up there is no room to draw.
    if (place.clientWidth === 0) continue;
    const moments = said.series[component] ?? [];
    const verdicts = said.verdicts[component] ?? [];
    const verdict = verdicts.find((one) => one.name === picked.get(component)) ?? closest(verdicts);
    const measured = said.measured[component];
    const flag = said.flags.find((one) => one.component === component);
    if (what === "shares") charts.shares(place, moments);
    if (what === "rail" && verdict) charts.guardrail(place, verdict, moments);
    if (what === "evidence" && verdict) charts.evidence(place, verdict, moments);
    if (what === "latency" && measured)
      charts.latencies(place, [measured.new, measured.control], flag?.slowAboveMs ?? null);
  }
}

/** A reason that is likely: why something is broken just now. */
function reasonFor(flag: Flag | null, verb: string): string {
  if (verb !== "rollback" && verb !== "emergency") return "";
  const because = found.find(
    (one) => one.level === "alarm" && (!flag || one.component === flag.component),
  );
  return because ? bytes(because.why, 500) : "";
}

function order(component: string, verb: string): void {
  if (verb === "emergency") {
    confirmation.open({
      order: emergency(data?.flags ?? []),
      flag: null,
      reason: reasonFor(null, verb),
    });
    return;
  }
  const flag = data?.flags.find((one) => one.component === component);
  const chosen = flag && possible(flag, age.theirs(Date.now())).find((one) => one.verb === verb);
  if (flag && chosen) confirmation.open({ order: chosen, flag, reason: reasonFor(flag, verb) });
}

async function acknowledge(id: string, button: HTMLElement): Promise<void> {
  button.setAttribute("aria-disabled", "true");
  const say = (text: string) => {
    saying = { text, level: "worry", until: Date.now() + 15_000 };
    drawTop();
  };
  try {
    const answer = await ask(`/api/migration/alerts/${encodeURIComponent(id)}/acknowledge`, {
      method: "POST",
    });
    const came = result(answer.status, await answer.json().catch(() => null));
    if (came.kind === "unauthorised") openToken(came.message);
    if (came.kind !== "done")
      say(`The alert was not acknowledged: ${"message" in came ? came.message : ""}`);
    await feed.once();
  } catch {
    say("The alert was not acknowledged: no answer from the gateway.");
  }
  button.removeAttribute("aria-disabled");
}

document.addEventListener("click", (event) => {
  const button = (event.target as Element).closest<HTMLElement>("[data-do]");
  if (!button || button.getAttribute("aria-disabled")) return;
  const { do: what, component = "", verb = "", name = "", id = "" } = button.dataset;
  if (what === "order") order(component, verb);
  if (what === "acknowledge") void acknowledge(id, button);
  if (what === "close") confirmation.close();
  if (what === "look-again") confirmation.lookAgain();
  if (what === "pick") {
    picked.set(component, name);
    draw();
  }
  if (what === "token") {
    confirmation.leave();
    openToken("");
    part("token-value").focus();
  }
  if (what === "forget") {
    token.set("");
    closeToken();
    feed.start();
  }
});

part("token").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = part("token-value") as HTMLInputElement;
  token.set(field.value.trim());
  field.value = "";
  closeToken();
  feed.start();
});

// What is unfolded has room to draw only then.
document.addEventListener("toggle", () => data && drawCharts(data), true);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  charts.sweep(true);
  if (data) drawCharts(data);
});
setInterval(drawTop, 500);
feed.start();
