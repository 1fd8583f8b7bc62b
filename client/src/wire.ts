/** What both transports are to the client: something that carries frames and tells what becomes of it. */
import type { ClientFrame, ServerFrame } from "./protocol.js";
import type { Loss } from "./state.js";

export interface Wire {
  send(frames: readonly ClientFrame[]): void;
  close(): void;
}

/** Where a wire tells what happens to it. Nobody listens any more after `lost`, or when it was closed. */
export interface Ears {
  opened(): void;
  /** A frame as it came. `at`: where an SSE stream stands. */
  hear(text: string, at?: string): void;
  /** The answer to a POST. */
  answer(frame: ServerFrame): void;
  lost(why: Loss): void;
}
