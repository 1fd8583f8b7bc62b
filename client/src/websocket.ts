/** A wire that is a WebSocket. */
import type { Ears, Wire } from "./wire.js";

export function openWebSocket(make: typeof WebSocket, url: string, ears: Ears): Wire {
  const socket = new make(url.replace(/^http/, "ws"), "crossfade.v1");
  socket.onopen = ears.opened;
  socket.onmessage = ({ data }) => ears.hear(data);
  socket.onclose = ears.lost;
  return {
    send: (frames) => {
      for (const frame of frames) if (socket.readyState === 1) socket.send(JSON.stringify(frame));
    },
    close: () => socket.close(1000),
  };
}
