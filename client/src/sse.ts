/**
 * A wire that is an EventSource one way, and POST the other. The stream names none of its events
 * (`?format=frames`), so that all of them come to `onmessage`.
 */
import type { ClientFrame } from "./protocol.js";
import type { Loss } from "./state.js";
import type { Ears, Wire } from "./wire.js";

/** Frames of one POST, and characters, so that any node passes it on. */
const LIST = 100;
const LIST_CHARS = 30_000;
/** A POST that is not answered by then says that the connection is dead. */
const POST_TIMEOUT = 10_000;

export function openSse(
  make: typeof EventSource,
  ask: typeof fetch,
  url: string,
  ears: Ears,
): Wire {
  const source = new make(url);
  const ended = new AbortController();
  const { signal } = ended;
  const queue: ClientFrame[] = [];
  let session: string;
  let open = false;
  let posting = false;

  const broken = (cause: unknown) => ears.lost({ reason: `${cause}` });
  const hear = ({ data, lastEventId }: MessageEvent<string>) => {
    session ||= JSON.parse(data).session;
    ears.hear(data, lastEventId);
  };
  source.onopen = () => {
    open = true;
    ears.opened();
  };
  source.onmessage = hear;
  // A gateway that has no place says so before it looks at the format.
  source.addEventListener("crossfade.goodbye", hear);
  source.onerror = () => {
    // It must not come back by itself: when, and from where on, is not its to decide.
    source.close();
    if (open) return ears.lost({});
    // An EventSource does not tell what it was refused with. Being lost aborts this as well.
    ask(url, { signal }).then(loss).then(ears.lost, broken);
  };

  const post = async () => {
    for (posting = true; queue.length; ) {
      const frames: ClientFrame[] = [];
      const bodies: string[] = [];
      for (let room = LIST_CHARS; queue.length && room > 0 && frames.length < LIST; ) {
        const frame = queue.shift() as ClientFrame;
        const body = JSON.stringify(frame);
        room -= body.length;
        frames.push(frame);
        bodies.push(body);
      }
      const late = setTimeout(ears.lost, POST_TIMEOUT, { reason: "no answer" });
      const address = url.replace(/\?.*/, `/${session}`);
      const response = await ask(address, { method: "POST", body: `[${bodies}]`, signal });
      await answered(frames, response).finally(() => clearTimeout(late));
    }
    posting = false;
  };

  const answered = async (frames: ClientFrame[], response: Response) => {
    const { status, ok } = response;
    if (ok) {
      for (const frame of status === 204 ? [] : await response.json()) ears.answer(frame);
      return;
    }
    const why = await loss(response);
    // What is not the stream's fault is not to be mended by sending it again.
    if (![400, 413, 422].includes(status)) return ears.lost(why);
    const { error: code = "malformed", reason: message = `refused with ${status}` } = why;
    for (const { id } of frames as { id?: number }[]) {
      if (id) ears.answer({ type: "error", id, code, message });
    }
  };

  return {
    send: (frames) => {
      queue.push(...frames);
      if (!posting) post().catch(broken);
    },
    close: () => {
      source.close();
      ended.abort();
    },
  };
}

/** What a refusal says. */
async function loss(response: Response): Promise<Loss> {
  const { status, headers } = response;
  if (status === 200) return {};
  const after = headers.get("retry-after");
  const { error } = await response.json().catch(() => ({}));
  return {
    status,
    after: after ? Number(after) * 1000 : undefined,
    reason: error?.message,
    error: error?.code,
  };
}
