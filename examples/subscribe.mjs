#!/usr/bin/env node
// Prints the events of a channel with @crossfade/client, over WebSocket or SSE, whichever works.
//
//   npm --prefix client ci && npm --prefix client run build
//   node examples/subscribe.mjs http://127.0.0.1:8080 news
import { createClient } from "../client/dist/node.js";

const [url, channel] = process.argv.slice(2);
const client = createClient({ url });
client.channel(channel).listen(({ position, name, data }) => {
  console.log(position, name ?? "message", JSON.stringify(data));
});
client.on("reset", () => console.error("the log no longer holds what was missed: load anew"));
client.on("reconnecting", ({ reason }) => console.error(`disconnected: ${reason}`));
client.on("closed", ({ reason }) => console.error(`closed: ${reason}`));
