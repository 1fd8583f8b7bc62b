#!/usr/bin/env node
// Publishes an event over plain HTTP, with Node's own fetch.
//
//   node examples/publish.mjs http://127.0.0.1:8080 news '{"hello": "world"}'
//
// It repeats a publish whose outcome is unknown with the same id: the gateway recognises it, and the
// event is in the log once. CROSSFADE_TOKEN is sent as a bearer token if it is set.
import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";

export async function publish(gateway, channel, data, name, tries = 10) {
  const headers = { "content-type": "application/json" };
  const token = process.env.CROSSFADE_TOKEN;
  if (token) headers.authorization = `Bearer ${token}`;
  const body = JSON.stringify({ id: randomUUID(), channel, data, name });
  for (let attempt = 0; attempt < tries; attempt++) {
    const answer = await fetch(`${gateway}/api/publish`, { method: "POST", headers, body }).catch(
      (error) => console.error(`no answer yet: ${error.cause?.code ?? error.message}`),
    );
    if (answer?.ok) return answer.json();
    // 429 and 503 pass; every other status says what is wrong with the request.
    if (answer && ![429, 503].includes(answer.status)) {
      throw new Error((await answer.json()).error.message);
    }
    await pause(Math.min(100 * 2 ** attempt, 5000));
  }
  throw new Error(`not published after ${tries} tries`);
}

const [gateway, channel, data, name] = process.argv.slice(2);
console.log(JSON.stringify(await publish(gateway, channel, JSON.parse(data), name)));
