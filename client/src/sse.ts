/**
 * A wire that is an SSE stream one way, and POST the other.
 *
 * The stream is read with `fetch`, not with an EventSource: that one hides events whose names were not
 * announced, the gateway's pings, the status and `Retry-After`, and cannot send a token as a header.
 */
import type { ClientFrame, ServerFrame } from "./protocol.js";
import type { Loss } from "./state.js";
import type { Ears, Wire } from "./wire.js";

/** Frames of one POST, and characters, so that any node passes it on. */
const LIST = 100;
const LIST_CHARS = 30_000;
/** A POST that is not answered by then says that the connection is dead. */
const POST_TIMEOUT = 10_000;

/** One block of a stream. */
export interface Block {
  readonly event: string;
  readonly data: string;
  readonly id: string | undefined;
  readonly comment: boolean;
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
      const comment = !data.length && "" in fields;
      return { event: fields.event ?? "", data: data.join("\n"), id: fields.id, comment };
    });
  };
}

/** The frame that a block is, if it is one. */
export function frameOf({ event, data, comment }: Block): ServerFrame | undefined {
  if (comment) return { type: "ping" };
  if (!data) return;
  const json = JSON.parse(data);
  if (event === "open" || event.startsWith("crossfade.")) return json;
  return { type: "event", ...(event && { name: event }), ...json };
}

export function openSse(ask: typeof fetch, url: string, ears: Ears, token?: string): Wire {
  const abort = new AbortController();
  const { signal } = abort;
  const queue: ClientFrame[] = [];
  let session = "";
  let posting = false;

  const lose = (why: Loss) => {
    if (signal.aborted) return;
    abort.abort();
    ears.lost(why);
  };

  const listen = async () => {
    const headers = {
      Accept: "text/event-stream",
      ...(token && { Authorization: `Bearer ${token}` }),
    };
    const response = await ask(url, { headers, signal, cache: "no-store" });
    if (response.status !== 200 || !response.body) return lose(await loss(response));
    ears.opened();
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    const cut = blocks();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return lose({});
      for (const block of cut(decoder.decode(value, { stream: true }))) {
        const frame = frameOf(block);
        if (!frame || signal.aborted) continue;
        if (frame.type === "welcome") session = frame.session;
        ears.frame(frame, block.id);
      }
    }
  };

  const post = async () => {
    posting = true;
    while (queue.length && !signal.aborted) {
      const frames: ClientFrame[] = [];
      let body = "";
      while (queue.length && frames.length < LIST && body.length < LIST_CHARS) {
        const frame = queue.shift() as ClientFrame;
        frames.push(frame);
        body += `${body && ","}${JSON.stringify(frame)}`;
      }
      await deliver(frames, `[${body}]`);
    }
    posting = false;
  };

  const deliver = async (frames: ClientFrame[], body: string) => {
    const late = setTimeout(() => lose({ reason: "no answer" }), POST_TIMEOUT);
    try {
      const address = url.replace(/\?.*/, `/${session}`);
      const response = await ask(address, { method: "POST", body, signal });
      if (response.status === 204) return;
      if (response.ok) {
        for (const frame of await response.json()) {
          if (!signal.aborted) ears.frame(frame, undefined, true);
        }
        return;
      }
      const why = await loss(response);
      // Not the stream's fault, nor to be mended by sending it again.
      if (![400, 413, 422].includes(response.status)) return lose(why);
      for (const frame of frames) {
        const id = "id" in frame ? frame.id : undefined;
        const message = why.reason ?? `refused with ${response.status}`;
        if (id !== undefined) {
          ears.frame(
            { type: "error", id, code: why.error ?? "malformed", message },
            undefined,
            true,
          );
        }
      }
    } finally {
      clearTimeout(late);
    }
  };

  const broken = (cause: unknown) =>
    lose({ reason: cause instanceof Error ? cause.message : "lost" });
  listen().catch(broken);
  return {
    send: (frames) => {
      queue.push(...frames);
      if (!posting) post().catch(broken);
    },
    close: () => abort.abort(),
  };
}

/** What a refusal says. */
async function loss(response: Response): Promise<Loss> {
  const seconds = Number(response.headers.get("retry-after") ?? Number.NaN);
  const body = await response.json().catch(() => undefined);
  return {
    status: response.status,
    ...(seconds >= 0 && { after: seconds * 1000 }),
    reason: body?.error?.message,
    error: body?.error?.code,
  };
}
