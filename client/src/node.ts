/**
 * `@crossfade/client/node`: the client where there is no EventSource, as in Node. It brings one that is
 * read with `fetch`: what the client needs of an EventSource, and no coming back by itself.
 */
import { type Client, type ClientOptions, createClient as create } from "./client.js";

export * from "./index.js";

/** Makes a client. Where there is no WebSocket either (Node 20), it uses SSE. */
export function createClient({ environment, ...options }: ClientOptions = {}): Client {
  const source = globalThis.EventSource ?? (FetchSource as unknown as typeof EventSource);
  return create({ ...options, environment: { EventSource: source, ...environment } });
}

/** One block of a stream. */
export interface Block {
  readonly event: string;
  readonly data: string;
  readonly id: string | undefined;
}

/** Takes a stream apart: each call gives the blocks that its piece of text completed. */
export function blocks(): (piece: string) => Block[] {
  let rest = "";
  return (piece) => {
    // A piece may end between the two halves of a line's end.
    const whole = (rest + piece).split(/\r?\n\r?\n/);
    rest = whole.pop() ?? "";
    return whole.map((text) => {
      const fields: Record<string, string> = {};
      const data: string[] = [];
      for (const line of text.split(/\r?\n/)) {
        const [, name = "", value = ""] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
        if (name === "data") data.push(value);
        else fields[name] = value;
      }
      return { event: fields.event ?? "message", data: data.join("\n"), id: fields.id };
    });
  };
}

type Listener = (event: { data: string; lastEventId: string }) => void;

class FetchSource {
  onopen = () => {};
  onerror = () => {};
  onmessage: Listener = () => {};
  readonly #named = new Map<string, Listener>();
  readonly #ended = new AbortController();

  constructor(url: string) {
    this.#read(url)
      .catch(() => {})
      .finally(() => this.#ended.signal.aborted || this.onerror());
  }

  addEventListener(name: string, listener: Listener): void {
    this.#named.set(name, listener);
  }

  close(): void {
    this.#ended.abort();
  }

  async #read(url: string): Promise<void> {
    const { signal } = this.#ended;
    const headers = { Accept: "text/event-stream" };
    const { status, body } = await fetch(url, { headers, signal, cache: "no-store" });
    if (status !== 200 || !body) {
      await body?.cancel();
      return;
    }
    this.onopen();
    const cut = blocks();
    let lastEventId = "";
    for await (const text of body.pipeThrough(new TextDecoderStream() as never)) {
      for (const { event, data, id } of cut(text as unknown as string)) {
        lastEventId = id ?? lastEventId;
        const hear = event === "message" ? this.onmessage : this.#named.get(event);
        if (data && !signal.aborted) hear?.({ data, lastEventId });
      }
    }
  }
}
