/**
 * The demo page: three clients in one page, each with a connection of its own. It counts what is
 * missing and repeated by the numbers that the publishers give their events.
 */
import { type Channel, type Client, createClient, type TransportName } from "../src/index.js";

type Room = {
  tick: { run: string; n: number };
  said: { name: string; text: string };
};

const NAMES = { websocket: "WebSocket", sse: "Server-Sent Events" } as const;
const query = new URLSearchParams(location.search);
const url = query.get("gateway") ?? "";
const room = query.get("channel") ?? "demo:room";

class Pane {
  readonly client: Client;
  readonly channel: Channel<Room>;
  readonly #root: HTMLElement;
  readonly #name: string;
  readonly #last = new Map<string, number>();
  #moving: TransportName | undefined;
  #patience: ReturnType<typeof setTimeout> | undefined;

  constructor(name: string) {
    this.#name = name;
    const template = document.querySelector("template") as HTMLTemplateElement;
    const piece = template.content.cloneNode(true) as DocumentFragment;
    this.#root = piece.firstElementChild as HTMLElement;
    this.#root.setAttribute("aria-label", name);
    this.#part("h2").textContent = name;
    document.querySelector("main")?.append(piece);
    this.client = createClient({ url });
    this.channel = this.client.channel<Room>(room);
    this.#listen();
  }

  #part<E extends HTMLElement = HTMLElement>(selector: string): E {
    return this.#root.querySelector(selector) as E;
  }

  #listen(): void {
    const { client, channel } = this;
    client.on("*", (event) => {
      if (event.type === "migrated") this.#switched(event.reason);
      else if (event.type === "reconnecting")
        this.#say(`Connection lost (${event.reason}), coming back`);
      else if (event.type === "resumed")
        this.#say(`Back after ${seconds(event.gap)}, nothing lost`);
      else if (event.type === "reset")
        this.#say("Something was missed that the log no longer holds");
      else if (event.type === "closed") this.#say(`Closed: ${event.reason}`);
      else if (event.type === "error") this.#say(event.message);
      else if (event.type === "connected" && event.fallback)
        this.#say("No WebSocket here: SSE instead");
      this.#show();
    });
    channel.listen(() => this.#tick());
    channel.on("tick", ({ run, n }) => this.#check(run, n));
    channel.on("said", ({ name, text }) => this.#message(name, text));
    channel.presence.watch(() => this.#members());
    channel.presence.enter({ name: this.#name });
    this.#part(".move").addEventListener("click", () => this.#move());
    this.#part<HTMLFormElement>("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#publish(event.currentTarget as HTMLFormElement);
    });
  }

  #move(): void {
    this.#moving = this.client.transport === "sse" ? "websocket" : "sse";
    this.#say(`Opening ${NAMES[this.#moving]} beside it`);
    this.client.migrate(this.#moving, "you asked for it");
    this.#show();
    clearTimeout(this.#patience);
    this.#patience = setTimeout(() => this.#still(), 11_000);
  }

  #still(): void {
    if (!this.#moving) return;
    this.#moving = undefined;
    this.#say("The other transport did not open; nothing has changed");
    this.#show();
  }

  #switched(reason: string): void {
    this.#moving = undefined;
    const { transport } = this.client;
    this.#say(`Now on ${transport ? NAMES[transport] : "nothing"}: ${reason}`);
    const mark = document.createElement("i");
    mark.className = "switch";
    this.#part(".strip").append(mark);
  }

  #show(): void {
    const { transport, state } = this.client;
    const badge = this.#part(".badge");
    badge.dataset.transport = transport ?? "none";
    badge.textContent = transport ? NAMES[transport] : state;
    const move = this.#part<HTMLButtonElement>(".move");
    move.disabled = !transport || !!this.#moving;
    move.textContent = `Move to ${NAMES[transport === "sse" ? "websocket" : "sse"]}`;
  }

  #say(text: string): void {
    this.#part(".notice").textContent = text;
  }

  #tick(): void {
    const strip = this.#part(".strip");
    const mark = document.createElement("i");
    mark.dataset.transport = this.client.transport ?? "none";
    strip.append(mark);
    while (strip.childElementCount > 90) strip.firstElementChild?.remove();
    this.#count(".received", 1);
  }

  #check(run: string, n: number): void {
    const last = this.#last.get(run);
    if (last !== undefined && n <= last) this.#count(".repeated", 1);
    else if (last !== undefined) this.#count(".missing", n - last - 1);
    this.#last.set(run, Math.max(n, last ?? 0));
  }

  #count(selector: string, more: number): void {
    const part = this.#part(selector);
    part.textContent = String(Number(part.textContent) + more);
    if (selector !== ".received" && more) part.classList.add("wrong");
  }

  #message(name: string, text: string): void {
    const log = this.#part(".messages");
    const line = document.createElement("li");
    const who = document.createElement("b");
    who.textContent = name;
    line.append(who, text);
    log.append(line);
    while (log.childElementCount > 100) log.firstElementChild?.remove();
    log.scrollTop = log.scrollHeight;
  }

  #members(): void {
    const { presence } = this.channel;
    const lines = presence.members.slice(0, 20).map(({ session, state }) => {
      const line = document.createElement("li");
      const { name } = (state ?? {}) as { name?: string };
      const me = session === this.client.member;
      line.textContent = `${name ?? session.slice(0, 6)}${me ? " (this one)" : ""}`;
      line.classList.toggle("me", me);
      return line;
    });
    const hidden = presence.count - lines.length;
    if (hidden > 0) {
      const more = document.createElement("li");
      more.textContent = `and ${hidden} more`;
      lines.push(more);
    }
    this.#part(".members").replaceChildren(...lines);
  }

  async #publish(form: HTMLFormElement): Promise<void> {
    const input = form.elements.namedItem("text") as HTMLInputElement;
    const text = input.value.trim();
    if (!text) return;
    input.value = "";
    try {
      await this.channel.publish({ name: this.#name, text }, { name: "said" });
    } catch (cause) {
      this.#say(`Not published: ${(cause as Error).message}`);
    }
  }
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`;
}

const panes = ["Ann", "Ben", "Cleo"].map((name) => new Pane(name));
const flow = document.querySelector("#flow") as HTMLButtonElement;
const run = Math.random().toString(36).slice(2);
let n = 0;
let timer: ReturnType<typeof setInterval> | undefined;

flow.addEventListener("click", () => {
  flow.setAttribute("aria-pressed", String(!timer));
  if (timer) {
    clearInterval(timer);
    timer = undefined;
    return;
  }
  timer = setInterval(() => {
    // It is sent again until it is stored; what fails for good shows as missing in every pane.
    panes[0]?.channel.publish({ run, n: ++n }, { name: "tick" }).catch(() => {});
  }, 200);
});
