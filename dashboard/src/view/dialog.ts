// The confirmation of an order: what will happen, why it is done, and what became of it. Sends the call it
// was given and says the answer properly; nothing is done by one slip of a finger.
import { h, show } from "../dom.ts";
import { ask, token } from "../feed.ts";
import type { Flag, Stop } from "../model.ts";
import { call, differences, type Order, type Result, result, type Said } from "../orders.ts";
import { bytes, STOP_WORDS } from "../words.ts";

const REASON_BYTES = 500;

interface Asked {
  order: Order;
  /** As the operator saw it; none for all rollouts. */
  flag: Flag | null;
  /** A reason that is likely. */
  reason: string;
}

/** What an order needs of the page around it. */
export interface Around {
  /** Looks at the gateway again, and gives the rollout as it is now. */
  look(component: string): Promise<Flag | undefined>;
  /** Says what became of it. */
  say(text: string, level: "well" | "worry"): void;
  /** Brings a rollout into view. */
  goTo(component: string): void;
}

export class Confirmation {
  #dialog: HTMLDialogElement;
  #asked: Asked | null = null;
  #busy = false;
  #opener: { what: string; fallback: string } | null = null;
  /** What was typed for an order that came to nothing, so that nobody types it again. */
  #drafts = new Map<string, string>();

  constructor(
    place: HTMLElement,
    private readonly around: Around,
  ) {
    this.#dialog = h("dialog", {
      id: "confirm",
      "aria-labelledby": "confirm-title",
    }) as HTMLDialogElement;
    place.append(this.#dialog);
    this.#dialog.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#send();
    });
    this.#dialog.addEventListener("input", () => {
      const said = this.#field("reason")?.value ?? "";
      if (this.#asked) this.#drafts.set(this.#key(), said);
    });
    this.#dialog.addEventListener("close", () => this.#closed());
  }

  open(asked: Asked): void {
    this.#asked = asked;
    const { order, flag } = asked;
    this.#opener = {
      what: `[data-verb="${order.verb}"]${flag ? `[data-component="${flag.component}"]` : ""}`,
      fallback: flag ? `#rollout-${flag.component}` : "#banner",
    };
    this.#dialog.replaceChildren(this.#form(asked));
    this.#dialog.showModal();
    this.#field("reason")?.focus();
  }

  #form({ order, flag, reason }: Asked): HTMLElement {
    const draft = this.#drafts.get(this.#key()) || reason;
    const which = flag ? flag.component : "everything";
    return h(
      "form",
      { method: "dialog", "data-grave": order.grave },
      h("h2", { id: "confirm-title" }, `${order.label}: ${which}`),
      h("p", {}, order.effect),
      order.percentage !== null &&
        h(
          "label",
          {},
          "Percentage of users on the new side",
          h("input", {
            name: "percentage",
            type: "number",
            min: 0,
            max: 100,
            step: "any",
            required: true,
            value: order.percentage,
            inputmode: "decimal",
          }),
        ),
      order.modes.length > 0 &&
        h(
          "fieldset",
          {},
          h("legend", {}, "How"),
          ...order.modes.map((mode, index) =>
            h(
              "label.choice",
              {},
              h("input", { type: "radio", name: "mode", value: mode, checked: index === 0 }),
              h("span", {}, h("b", {}, mode), ` – ${STOP_WORDS[mode]}`),
            ),
          ),
        ),
      order.forced !== "" &&
        h(
          "label.choice",
          {},
          h("input", { type: "checkbox", name: "force" }),
          h("span", {}, `${order.forced} Start without waiting for that.`),
        ),
      h(
        "label",
        {},
        "Reason, for those who come after you",
        h("textarea", { name: "reason", required: true, rows: 3, maxlength: REASON_BYTES }, draft),
      ),
      h("div", { id: "confirm-answer", "aria-live": "assertive" }),
      h(
        "div.buttons",
        {},
        h("button", { type: "button", "data-do": "close" }, "Leave it as it is"),
        h(
          `button${order.grave ? ".grave" : ".go"}`,
          { type: "submit", id: "confirm-go" },
          order.label,
        ),
      ),
    );
  }

  close(): void {
    this.#dialog.close();
  }

  /** Away with the dialog, where the focus is wanted elsewhere. */
  leave(): void {
    this.#opener = null;
    this.#dialog.close();
  }

  /** After a conflict: the rollout as it is now into view. */
  lookAgain(): void {
    const component = this.#asked?.flag?.component;
    this.leave();
    if (component) this.around.goTo(component);
  }

  #closed(): void {
    // It is told late: by then somebody quick has opened it again.
    if (this.#dialog.open) return;
    this.#asked = null;
    // The button may be gone: what was done has changed what can be done.
    const back = this.#opener && document.querySelector<HTMLElement>(this.#opener.what);
    if (back) back.focus();
    else if (this.#opener) document.querySelector<HTMLElement>(this.#opener.fallback)?.focus();
  }

  #key(): string {
    return `${this.#asked?.order.verb} ${this.#asked?.flag?.component ?? ""}`;
  }

  #field(name: string): HTMLInputElement | null {
    return this.#dialog.querySelector(`[name="${name}"]`);
  }

  #said(): Said {
    const percentage = this.#field("percentage")?.value;
    const mode = this.#dialog.querySelector<HTMLInputElement>('[name="mode"]:checked')?.value;
    return {
      reason: bytes((this.#field("reason")?.value ?? "").trim(), REASON_BYTES),
      mode: (mode as Stop | undefined) ?? null,
      percentage: percentage === undefined ? null : Number(percentage),
      force: this.#field("force")?.checked ?? false,
    };
  }

  async #send(): Promise<void> {
    const asked = this.#asked;
    if (!asked || this.#busy) return;
    const said = this.#said();
    const reason = this.#field("reason");
    if (said.reason === "") {
      reason?.focus();
      return this.#answer("Say why: those who come after you want to know.");
    }
    this.#busy = true;
    this.#dialog.querySelector("#confirm-go")?.setAttribute("aria-disabled", "true");
    this.#answer("Asking the gateway …", "soft");
    const { method, path, body } = call(
      asked.order,
      asked.flag?.component ?? "",
      asked.flag?.version ?? null,
      said,
    );
    let came: Result;
    try {
      const answer = await ask(path, {
        method,
        body: JSON.stringify(body),
        headers: { "Content-Type": "application/json" },
        signal: AbortSignal.timeout(10_000),
      });
      came = result(answer.status, await answer.json().catch(() => null));
    } catch {
      const message =
        "No answer from the gateway: nobody knows whether it was done. Look at the page before you repeat it.";
      came = { kind: "refused", message };
    } finally {
      this.#busy = false;
      this.#dialog.querySelector("#confirm-go")?.removeAttribute("aria-disabled");
    }
    if (this.#asked === asked) await this.#came(asked, came);
  }

  async #came(asked: Asked, came: Result): Promise<void> {
    const { order, flag } = asked;
    const which = flag ? ` of ${flag.component}` : "";
    switch (came.kind) {
      case "done":
        this.#finish(`${order.label}${which}: done.`, "well");
        break;
      case "here-only":
        this.#finish(`${order.label}${which}: ${came.message}.`, "worry");
        break;
      case "conflict":
        await this.#conflict(flag, came.message);
        break;
      case "unauthorised":
        this.#answer(`The gateway does not know you: ${came.message}. `, "problem", "token");
        break;
      case "forbidden":
        this.#answer(
          `You may not do this: ${came.message}. It takes the scope admin. `,
          "problem",
          "token",
        );
        break;
      default:
        this.#answer(`It was not done: ${came.message}.`);
    }
  }

  #finish(text: string, level: "well" | "worry"): void {
    this.#drafts.delete(this.#key());
    this.#dialog.close();
    this.around.say(text.replace(/\.\.$/, "."), level);
    void this.around.look("").catch(() => undefined);
  }

  async #conflict(before: Flag | null, message: string): Promise<void> {
    const after = before
      ? await this.around.look(before.component).catch(() => undefined)
      : undefined;
    const changes = before && after ? differences(before, after) : [];
    const by = after?.changedBy ? ` by ${after.changedBy}` : "";
    const now = after
      ? ` It has version ${after.version ?? "?"} now; you saw ${before?.version ?? "?"}.`
      : "";
    const place = this.#dialog.querySelector("#confirm-answer");
    if (!place) return;
    show(
      place,
      h(
        "div.problem",
        {},
        h("p", {}, h("b", {}, `Nothing was done: it was changed meanwhile${by}.`), now),
        changes.length > 0
          ? h("ul", {}, ...changes.map((change) => h("li", {}, change)))
          : h("p", {}, message || "Look at it again, then decide."),
        h("button.go", { type: "button", "data-do": "look-again" }, "Look again"),
      ),
    );
    this.#dialog.querySelector("#confirm-go")?.setAttribute("hidden", "");
    this.#dialog.querySelector<HTMLElement>('[data-do="look-again"]')?.focus();
  }

  #answer(text: string, look: "problem" | "soft" = "problem", then?: "token"): void {
    const place = this.#dialog.querySelector("#confirm-answer");
    const line = text.replace(/\.\.(\s|$)/, ".$1");
    if (place)
      show(
        place,
        h(
          `p.${look}`,
          {},
          line,
          then === "token" &&
            h(
              "button",
              { type: "button", "data-do": "token" },
              token.get() ? "Use another token" : "Give a token",
            ),
        ),
      );
  }
}
