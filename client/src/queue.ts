/** A bounded queue between listeners and a `for await` loop. */
import { CrossfadeError } from "./error.js";

export class Queue<T> implements AsyncIterableIterator<T> {
  readonly #items: T[] = [];
  readonly #size: number;
  readonly #stop: () => void;
  #waiting: ((result: IteratorResult<T> | Promise<never>) => void) | undefined;
  #ended: "no" | "overflow" | "done" = "no";

  constructor(size: number, stop: () => void) {
    this.#size = size;
    this.#stop = stop;
  }

  push(value: T): void {
    if (this.#ended !== "no") return;
    if (this.#waiting) {
      this.#waiting({ done: false, value });
      this.#waiting = undefined;
    } else if (this.#items.length < this.#size) this.#items.push(value);
    else {
      this.#ended = "overflow";
      this.#stop();
    }
  }

  /** The events held come first, then the end. */
  next(): Promise<IteratorResult<T>> {
    if (this.#items.length)
      return Promise.resolve({ done: false, value: this.#items.shift() as T });
    if (this.#ended === "overflow") {
      this.#ended = "done";
      const message = `the loop is slower than the channel: more than ${this.#size} events wait`;
      return Promise.reject(new CrossfadeError("too_slow", message));
    }
    if (this.#ended === "done") return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve) => {
      // Only one call waits at a time in a loop; an earlier one is told that there is no more.
      this.#waiting?.({ done: true, value: undefined });
      this.#waiting = resolve;
    });
  }

  return(): Promise<IteratorResult<T>> {
    this.#ended = "done";
    this.#items.length = 0;
    this.#stop();
    this.#waiting?.({ done: true, value: undefined });
    this.#waiting = undefined;
    return Promise.resolve({ done: true, value: undefined });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }
}
