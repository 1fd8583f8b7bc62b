// Keeps what the gateway says coming: the stream if it can be had, else by asking again and again.
//
// Knows the network and the token, and nothing of what is said. A token is kept for the tab only.
import { Events } from "./sse.ts";

const EVERY_MS = 2_000;
/** Without news for so long a stream is given up, and asked for instead. */
const SILENT_MS = 6_000;
/** While asking, the stream is tried again after so long. */
const AGAIN_MS = 15_000;
const URL_NOW = "/api/migration/dashboard";
const KEY = "crossfade.token";

export type Way =
  | { by: "nothing"; problem: string }
  | { by: "stream"; problem: "" }
  | { by: "asking"; problem: string }
  | { by: "denied"; status: 401 | 403; problem: string };

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value: string) =>
    value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY),
};

/** A call with the token; the caller reads the answer. */
export function ask(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  const its = token.get();
  if (its) headers.set("Authorization", `Bearer ${its}`);
  return fetch(path, { ...init, headers, cache: "no-store", credentials: "same-origin" });
}

class Denied extends Error {
  constructor(
    readonly status: 401 | 403,
    message: string,
  ) {
    super(message);
  }
}

export class Feed {
  #way: Way = { by: "nothing", problem: "" };
  #round = new AbortController();
  #streamed = 0;

  constructor(
    private readonly heard: (said: unknown) => void,
    private readonly changed: (way: Way) => void,
  ) {}

  get way(): Way {
    return this.#way;
  }

  /** Begins, or begins anew: with another token, or because somebody asks. */
  start(): void {
    this.#round.abort();
    this.#round = new AbortController();
    this.#streamed = 0;
    void this.#run(this.#round.signal);
  }

  /** Asks once, now. */
  async once(): Promise<void> {
    const answer = await ask(URL_NOW, { signal: AbortSignal.timeout(5_000) });
    this.heard(await (await allowed(answer)).json());
  }

  #turn(way: Way): void {
    this.#way = way;
    this.changed(way);
  }

  async #run(over: AbortSignal): Promise<void> {
    let problem = "";
    while (!over.aborted) {
      try {
        if (Date.now() - this.#streamed >= AGAIN_MS) {
          this.#streamed = Date.now();
          problem = await this.#stream(over).catch(problemOf);
          if (over.aborted) return;
        }
        await this.once();
        this.#turn({ by: "asking", problem });
      } catch (err) {
        if (over.aborted) return;
        // Only the token's owner can change that: no use in asking again.
        if (err instanceof Denied)
          return this.#turn({ by: "denied", status: err.status, problem: err.message });
        this.#turn({ by: "nothing", problem: problemOf(err) });
      }
      await pause(EVERY_MS, over);
    }
  }

  /** Hears until the stream ends, and says why it did. */
  async #stream(over: AbortSignal): Promise<string> {
    const silent = new AbortController();
    const either = AbortSignal.any([over, silent.signal]);
    let alarm = setTimeout(() => silent.abort(), SILENT_MS);
    try {
      const headers = { Accept: "text/event-stream" };
      const answer = await allowed(await ask(`${URL_NOW}/stream`, { headers, signal: either }));
      if (!answer.body || !answer.headers.get("content-type")?.startsWith("text/event-stream"))
        return "no stream";
      const events = new Events();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return "the stream ended";
        for (const { event, data } of events.take(value)) {
          if (event !== "dashboard") continue;
          clearTimeout(alarm);
          alarm = setTimeout(() => silent.abort(), SILENT_MS);
          this.heard(JSON.parse(data));
          if (this.#way.by !== "stream") this.#turn({ by: "stream", problem: "" });
          // A stream that worked is wanted again at once.
          this.#streamed = Date.now() - AGAIN_MS + EVERY_MS;
        }
      }
    } catch (err) {
      if (silent.signal.aborted) return "the stream fell silent";
      throw err;
    } finally {
      clearTimeout(alarm);
    }
  }
}

async function allowed(answer: Response): Promise<Response> {
  if (answer.ok) return answer;
  const body: unknown = await answer.json().catch(() => null);
  const said = (body as { error?: { message?: unknown } } | null)?.error?.message;
  const message = typeof said === "string" ? said : `the gateway answered ${answer.status}`;
  if (answer.status === 401 || answer.status === 403) throw new Denied(answer.status, message);
  throw new Error(message);
}

function problemOf(err: unknown): string {
  if (err instanceof Denied) throw err;
  if (err instanceof DOMException && err.name === "TimeoutError") return "no answer within 5 s";
  // What a browser says when there is no server differs from browser to browser.
  if (err instanceof TypeError) return "the gateway cannot be reached";
  return err instanceof Error ? err.message : String(err);
}

function pause(ms: number, over: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    over.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
