/** A wire that is a WebSocket. */
import type { Ears, Wire } from "./wire.js";

export function openWebSocket(make: typeof WebSocket, url: string, ears: Ears): Wire {
  const socket = new make(url.replace(/^http/, "ws"), "crossfade.v1");
  let open = true;
  const end = (tell: () => void) => {
    if (!open) return;
    open = false;
    tell();
  };
  socket.onopen = () => open && ears.opened();
  socket.onmessage = ({ data }) => {
    if (!open) return;
    let frame: unknown;
    try {
      frame = JSON.parse(data);
    } catch {
      socket.close();
      return end(() => ears.lost({ reason: "not the gateway's language" }));
    }
    ears.frame(frame as Parameters<Ears["frame"]>[0]);
  };
  socket.onclose = ({ code, reason }) => end(() => ears.lost({ code, reason }));
  return {
    send: (frames) => {
      if (socket.readyState !== 1) return;
      for (const frame of frames) socket.send(JSON.stringify(frame));
    },
    close: () => end(() => socket.close(1000)),
  };
}
