/** What both transports are to the client: something that carries frames and tells what becomes of it. */
import type { ClientFrame, ServerFrame } from "./protocol.js";
import type { Loss } from "./state.js";

export interface Wire {
  send(frames: readonly ClientFrame[]): void;
  /** Ends it. Nothing is heard of it afterwards. */
  close(): void;
}

/** Where a wire tells what happens to it. */
export interface Ears {
  opened(): void;
  /** `at`: where an SSE stream stands. `posted`: it answers a POST. */
  frame(frame: ServerFrame, at?: string, posted?: boolean): void;
  lost(why: Loss): void;
}
