// Legacy system for tests: a minimal SSE server fed by Redis SUBSCRIBE, with a page that uses a plain
// EventSource. It knows nothing of the gateway and is never changed for it.
//
//   node server.mjs --redis PORT-OR-SOCKET [--port N] [--tls CERT KEY]     prints "listening PORT"
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

// Senders of the open streams, by Redis channel.
const subscribers = new Map();
const redis = connectRedis(argument("--redis"));

function connectRedis(address) {
  if (!address) return undefined;
  const isPort = /^\d+$/.test(address);
  const socket = isPort ? net.connect(Number(address), "127.0.0.1") : net.connect(address);
  let buffer = Buffer.alloc(0);
  socket.on("data", (chunk) => {
    buffer = Buffer.concat([buffer, chunk]);
    for (let reply = parseArray(buffer); reply; reply = parseArray(buffer)) {
      buffer = buffer.subarray(reply.length);
      const [kind, channel, payload] = reply.items;
      if (kind === "message") for (const send of subscribers.get(channel) ?? []) send(payload);
    }
  });
  socket.on("error", () => process.exit(1));
  const command = (...args) =>
    socket.write(
      `*${args.length}\r\n${args.map((arg) => `$${Buffer.byteLength(arg)}\r\n${arg}\r\n`).join("")}`,
    );
  return { subscribe: (channel) => command("SUBSCRIBE", channel) };
}

// Parses one RESP array, if it is complete.
function parseArray(buffer) {
  const line = (from) => {
    const end = buffer.indexOf("\r\n", from);
    return end < 0 ? undefined : [buffer.toString("utf8", from, end), end + 2];
  };
  const head = line(0);
  if (!head) return undefined;
  let at = head[1];
  const items = [];
  for (let n = 0; n < Number(head[0].slice(1)); n++) {
    const item = line(at);
    if (!item) return undefined;
    at = item[1];
    if (item[0][0] === "$") {
      const length = Number(item[0].slice(1));
      if (buffer.length < at + length + 2) return undefined;
      items.push(buffer.toString("utf8", at, at + length));
      at += length + 2;
    } else items.push(item[0].slice(1));
  }
  return { items, length: at };
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
  if (!subscribers.has(channel)) {
    subscribers.set(channel, new Set());
    redis?.subscribe(channel);
  }
  subscribers.get(channel).add(send);
  open += 1;
  request.on("close", () => {
    subscribers.get(channel).delete(send);
    open -= 1;
  });
}

function handle(request, response) {
  const { pathname } = new URL(request.url, "http://x");
  const [, first, second] = pathname.split("/");
  if (first === "stream") return stream(request, response, second);
  if (first === "") return response.setHeader("content-type", "text/html").end(page);
  if (first === "open") return response.end(String(open));
  // Sends an event that was not PUBLISHed.
  if (first === "emit") {
    let payload = "";
    request.on("data", (chunk) => (payload += chunk));
    request.on("end", () => {
      for (const send of subscribers.get(`room.${second}`) ?? []) send(payload);
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
  // Echoes each chunk of the body at once.
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
  return response.end("not found on the legacy server\n");
}

const tls = argument("--tls");
const server = tls
  ? createTlsServer({ cert: readFileSync(tls), key: readFileSync(argument("--tls", 2)) }, handle)
  : createServer(handle);
// A WebSocket as far as a proxy is concerned: a handshake, then echoed bytes.
server.on("upgrade", (request, socket) => {
  socket.write("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
  open += 1;
  socket.on("close", () => (open -= 1));
  socket.on("error", () => {});
  socket.on("end", () => socket.end());
  socket.on("data", (chunk) => socket.write(chunk));
});
server.listen(Number(argument("--port") ?? 0), "127.0.0.1", () =>
  console.log(`listening ${server.address().port}`),
);
