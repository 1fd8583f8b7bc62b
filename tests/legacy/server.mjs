// The old system of the tests: a hand-made SSE server as teams have them, fed by Redis SUBSCRIBE, with a
// page that uses a plain EventSource. It knows nothing of the gateway, and is never changed for it.
//
//   node server.mjs --redis PORT-OR-SOCKET [--port N] [--tls CERT KEY]     says "listening PORT"
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import net from "node:net";

const argument = (name, after = 1) => {
  const at = process.argv.indexOf(name);
  return at < 0 ? undefined : process.argv[at + after];
};

const page = `<!doctype html><title>Room 42</title><ul></ul><script>
  window.got = [];
  window.opened = 0;
  const stream = new EventSource("/stream/42");
  stream.onopen = () => (window.opened += 1);
  stream.onmessage = ({ data }) => {
    window.got.push(JSON.parse(data).n);
    document.querySelector("ul").append(Object.assign(document.createElement("li"), { textContent: data }));
  };
</script>`;

// Who listens to which Redis channel.
const rooms = new Map();
const redis = subscribe(argument("--redis"));

function subscribe(place) {
  if (!place) return undefined;
  const socket = /^\d+$/.test(place) ? net.connect(Number(place), "127.0.0.1") : net.connect(place);
  let buffer = Buffer.alloc(0);
  socket.on("data", (piece) => {
    buffer = Buffer.concat([buffer, piece]);
    for (let taken = take(buffer); taken; taken = take(buffer)) {
      buffer = buffer.subarray(taken.length);
      const [kind, channel, payload] = taken.words;
      if (kind === "message") for (const send of rooms.get(channel) ?? []) send(payload);
    }
  });
  socket.on("error", () => process.exit(1));
  const say = (...words) =>
    socket.write(
      `*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`,
    );
  return { hear: (channel) => say("SUBSCRIBE", channel) };
}

// One array of Redis's protocol, if all of it is there.
function take(buffer) {
  const line = (from) => {
    const end = buffer.indexOf("\r\n", from);
    return end < 0 ? undefined : [buffer.toString("utf8", from, end), end + 2];
  };
  const head = line(0);
  if (!head) return undefined;
  let at = head[1];
  const words = [];
  for (let n = 0; n < Number(head[0].slice(1)); n++) {
    const item = line(at);
    if (!item) return undefined;
    at = item[1];
    if (item[0][0] === "$") {
      const length = Number(item[0].slice(1));
      if (buffer.length < at + length + 2) return undefined;
      words.push(buffer.toString("utf8", at, at + length));
      at += length + 2;
    } else words.push(item[0].slice(1));
  }
  return { words, length: at };
}

let open = 0;

function stream(request, response, room) {
  const channel = `room.${room}`;
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  response.write("retry: 200\nevent: hello\ndata: {}\n\n");
  const send = (payload) => {
    let id;
    try {
      id = JSON.parse(payload)?.meta?.id;
    } catch {}
    const lines = payload.split("\n").map((text) => `data: ${text}\n`);
    response.write(`${id ? `id: ${id}\n` : ""}${lines.join("")}\n`);
  };
  if (!rooms.has(channel)) {
    rooms.set(channel, new Set());
    redis?.hear(channel);
  }
  rooms.get(channel).add(send);
  open += 1;
  request.on("close", () => {
    rooms.get(channel).delete(send);
    open -= 1;
  });
}

function answer(request, response) {
  const { pathname } = new URL(request.url, "http://x");
  const [, first, second] = pathname.split("/");
  if (first === "stream") return stream(request, response, second);
  if (first === "") return response.setHeader("content-type", "text/html").end(page);
  if (first === "open") return response.end(String(open));
  // An event that no publisher sent.
  if (first === "say") {
    let said = "";
    request.on("data", (piece) => (said += piece));
    request.on("end", () => {
      for (const send of rooms.get(`room.${second}`) ?? []) send(said);
      response.end();
    });
    return undefined;
  }
  if (first === "echo") {
    const { method, url, headers } = request;
    response.setHeader("set-cookie", ["a=1", "b=2"]);
    response.setHeader("connection", "x-hop");
    response.setHeader("x-hop", "1");
    return response.end(JSON.stringify({ method, url, headers, rawHeaders: request.rawHeaders }));
  }
  // Each piece comes back as soon as it is there.
  if (first === "mirror") {
    response.writeHead(200, { "content-type": "application/octet-stream" });
    response.flushHeaders();
    return request.pipe(response);
  }
  if (first === "never") return request.on("close", () => (open -= 1)) && (open += 1);
  if (first === "broken") {
    response.writeHead(200, { "content-length": "100" });
    return response.write("half", () => request.socket.destroy());
  }
  response.statusCode = 404;
  return response.end("the old server knows nothing of that\n");
}

const tls = argument("--tls");
const server = tls
  ? createTlsServer({ cert: readFileSync(tls), key: readFileSync(argument("--tls", 2)) }, answer)
  : createServer(answer);
// A WebSocket, as far as a proxy is concerned: a handshake, then bytes both ways.
server.on("upgrade", (request, socket) => {
  socket.write("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
  open += 1;
  socket.on("close", () => (open -= 1));
  socket.on("error", () => {});
  socket.on("end", () => socket.end());
  socket.on("data", (piece) => socket.write(piece));
});
server.listen(Number(argument("--port") ?? 0), "127.0.0.1", () =>
  console.log(`listening ${server.address().port}`),
);
