/** A gateway just large enough for the client as a whole: a WebSocket that a test speaks through. */
import { createClient } from "../src/index.js";
import type { ClientOptions } from "../src/client.js";
import type { ServerFrame } from "../src/protocol.js";

export class FakeSocket {
  static opened: FakeSocket[] = [];
  readyState = 0;
  onopen = () => {};
  onmessage = (_: { data: string }) => {};
  onclose = (_: { code: number; reason: string }) => {};
  readonly said: { type: string; id?: number; channel?: string }[] = [];

  constructor(
    readonly url: string,
    readonly protocol: string,
  ) {
    FakeSocket.opened.push(this);
  }

  send(text: string): void {
    this.said.push(JSON.parse(text));
  }

  close(): void {
    this.readyState = 3;
  }

  tell(frame: ServerFrame): void {
    this.onmessage({ data: JSON.stringify(frame) });
  }

  /** Welcomes the client, and gives it what it subscribes to. */
  serve(keep: (frame: { type: string }) => boolean = () => false): this {
    this.readyState = 1;
    this.onopen();
    this.tell({
      type: "welcome",
      session: "s",
      member: "me",
      node: "n",
      heartbeat: 25_000,
      version: 1,
    });
    const said = this.said.splice(0);
    this.said.push(...said.filter(keep));
    for (const { type, id, channel = "" } of said) {
      if (type !== "subscribe" || id === undefined) continue;
      this.tell({ type: "subscribed", id, channel, position: "e-0", recovered: true });
    }
    return this;
  }

  event(channel: string, offset: number, name?: string): void {
    const about = { channel, id: `m${offset}`, position: `e-${offset}`, time: 0 };
    this.tell({ type: "event", ...about, ...(name && { name }), data: offset });
  }
}

/** A client whose WebSockets are fakes; the newest is `FakeSocket.opened.at(-1)`. */
export function client(options: ClientOptions = {}) {
  FakeSocket.opened = [];
  return createClient({
    url: "http://gateway/rt/",
    transport: "websocket",
    ...options,
    environment: {
      WebSocket: FakeSocket as unknown as typeof WebSocket,
      storage: undefined,
      page: undefined,
      ...options.environment,
    },
  });
}

export function socket(): FakeSocket {
  return FakeSocket.opened.at(-1) as FakeSocket;
}
