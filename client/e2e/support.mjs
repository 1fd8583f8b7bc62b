// What the end-to-end tests stand on: a gateway process with a Redis of its own, a proxy that is a bad
// network, a page in a real browser, and a publisher that knows what it published.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { build } from "esbuild";
import { chromium } from "playwright-core";

const root = new URL("../..", import.meta.url).pathname;
const binary = process.env.CROSSFADE_BIN ?? join(root, "target/debug/crossfade");
const browserPath = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";

/** Waits for something to be so. */
export async function eventually(what, ready, within = 30_000) {
  const end = Date.now() + within;
  for (;;) {
    const found = await ready();
    if (found) return found;
    if (end < Date.now()) throw new Error(`not within ${within} ms: ${what}`);
    await pause(20);
  }
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** A gateway process that can be killed and started again on the same port, and its Redis. */
export class Gateway {
  #home = mkdtempSync(join(tmpdir(), "crossfade-e2e-"));
  #redis;
  #process;

  /** `config` is a config.toml; `settings` are variables, which win over it. */
  static async start(settings = {}, config = "") {
    if (!existsSync(binary)) throw new Error(`${binary} is missing: cargo build first`);
    const gateway = new Gateway();
    gateway.port = await freePort();
    gateway.settings = settings;
    writeFileSync(join(gateway.#home, "config.toml"), config);
    const socket = join(gateway.#home, "redis.sock");
    const options = ["--port", "0", "--unixsocket", socket, "--dir", gateway.#home, "--save", ""];
    gateway.#redis = spawn("redis-server", options, { stdio: "ignore" });
    await eventually("redis listens", () => existsSync(socket));
    gateway.redisUrl = `redis+unix://${socket}`;
    await gateway.run();
    return gateway;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async run() {
    const env = {
      PATH: process.env.PATH,
      CROSSFADE_SERVER__LISTEN: `127.0.0.1:${this.port}`,
      CROSSFADE_BROKER__KIND: "redis",
      CROSSFADE_BROKER__REDIS__URL: this.redisUrl,
      CROSSFADE_CONNECTION__HEARTBEAT: "2s",
      CROSSFADE_CONNECTION__SSE_RETRY: "300ms",
      CROSSFADE_CONNECTION__DRAIN_SPREAD: "300ms",
      CROSSFADE_CLUSTER__NODE_TIMEOUT: "3s",
      ...this.settings,
    };
    const stdio = process.env.SHOW_GATEWAY_LOGS ? "inherit" : "ignore";
    this.#process = spawn(binary, ["serve"], { env, cwd: this.#home, stdio });
    await eventually("the gateway is ready", () =>
      fetch(`${this.url}/health/ready`).then(
        (answer) => answer.ok,
        () => false,
      ),
    );
    // Until it has read its rollouts it sends everybody to SSE, and says that none is on.
    await eventually("its rollouts are read", async () => {
      const answer = await fetch(`${this.url}/api/route`);
      const { reason, transport } = answer.ok ? await answer.json() : {};
      return reason !== "off" || transport === "websocket";
    });
  }

  async kill(signal = "SIGKILL") {
    const gone = once(this.#process, "exit");
    this.#process.kill(signal);
    await gone;
  }

  async stop() {
    if (this.#process.exitCode === null && !this.#process.signalCode) await this.kill();
    const gone = once(this.#redis, "exit");
    this.#redis.kill("SIGKILL");
    await gone;
    rmSync(this.#home, { recursive: true, force: true });
  }
}

/** A network between the page and the gateway that can be made bad. */
export class Network {
  /** Milliseconds that each piece is held back. */
  delay = 0;
  /** What a handshake for a WebSocket meets: `pass`, `refuse`, or `hang`. */
  upgrades = "pass";
  #pairs = new Set();

  static async to(port) {
    const proxy = new Network();
    proxy.server = net.createServer((client) => proxy.#carry(client, port)).listen(0, "127.0.0.1");
    await once(proxy.server, "listening");
    return proxy;
  }

  get url() {
    return `http://127.0.0.1:${this.server.address().port}`;
  }

  #carry(client, port) {
    const gateway = net.connect(port, "127.0.0.1");
    const pair = [client, gateway];
    this.#pairs.add(pair);
    const end = () => {
      for (const socket of pair) socket.destroy();
      this.#pairs.delete(pair);
    };
    let first = true;
    client.on("data", (piece) => {
      const head = first ? piece.toString("latin1").toLowerCase() : "";
      first = false;
      if (head.includes("upgrade: websocket") && this.upgrades !== "pass") {
        if (this.upgrades === "refuse") end();
        else client.removeAllListeners("data").resume();
        return;
      }
      this.#pass(piece, gateway);
    });
    gateway.on("data", (piece) => this.#pass(piece, client));
    for (const socket of pair) socket.on("error", end).on("close", end);
  }

  #pass(piece, to) {
    if (!this.delay) return to.write(piece);
    setTimeout(() => to.destroyed || to.write(piece), this.delay);
  }

  /** Breaks everything that goes through now. */
  cut() {
    for (const pair of this.#pairs) for (const socket of pair) socket.resetAndDestroy();
    this.#pairs.clear();
  }

  stop() {
    this.cut();
    this.server.close();
  }
}

/** Publishes 0, 1, 2 … in order, each until the gateway has it. */
export class Publisher {
  sent = 0;
  running = true;

  constructor(gateway, channel, { perSecond = 500, batch = 25, key } = {}) {
    this.headers = key ? { authorization: `Bearer ${key}` } : {};
    this.done = this.#run(gateway, channel, perSecond, batch);
  }

  async #run(gateway, channel, perSecond, batch) {
    const run = Math.random().toString(36).slice(2);
    const began = Date.now();
    let skipped = 0;
    while (this.running) {
      const events = Array.from({ length: batch }, (_, i) => {
        const data = this.sent + i;
        return { channel, name: data % 3 ? "tick" : "tock", data, id: `${run}-${data}` };
      });
      const before = Date.now();
      await this.#insist(`${gateway.url}/api/publish/batch`, JSON.stringify({ events }));
      // What a dead gateway did not take is not caught up in a burst.
      if (Date.now() - before > 300) skipped += Date.now() - before;
      this.sent += batch;
      await pause(Math.max(0, began + skipped + (this.sent * 1000) / perSecond - Date.now()));
    }
  }

  async #insist(url, body) {
    for (;;) {
      const answer = await fetch(url, { method: "POST", body, headers: this.headers }).catch(
        () => undefined,
      );
      const json = answer?.ok ? await answer.json().catch(() => undefined) : undefined;
      if (json?.results.every((result) => !result.error)) return;
      await pause(50);
    }
  }

  async stop() {
    this.running = false;
    await this.done;
    return this.sent;
  }
}

/** A browser and the pages it shows, which have the client as `crossfade`. */
export class Browser {
  /** Pages show `html`, or nothing but the client. */
  static async start({ html = '<!doctype html><script src="/client.js"></script>' } = {}) {
    const browser = new Browser();
    const { outputFiles } = await build({
      entryPoints: [join(root, "client/src/index.ts")],
      bundle: true,
      format: "iife",
      globalName: "crossfade",
      write: false,
    });
    browser.server = createServer((request, response) => {
      const script = request.url === "/client.js";
      response.setHeader("content-type", script ? "text/javascript" : "text/html; charset=utf-8");
      response.end(script ? outputFiles[0].contents : html);
    }).listen(0, "127.0.0.1");
    await once(browser.server, "listening");
    browser.chromium = await chromium.launch({
      executablePath: browserPath,
      // Pages that are left are kept for coming back, as in a browser of one's own.
      ignoreDefaultArgs: ["--disable-back-forward-cache"],
      args: ["--no-sandbox", "--disable-dev-shm-usage"],
    });
    return browser;
  }

  async page(query = "") {
    const page = await this.chromium.newPage();
    page.errors = [];
    page.on("pageerror", (error) => page.errors.push(String(error)));
    await page.goto(`http://127.0.0.1:${this.server.address().port}/${query}`);
    return page;
  }

  async stop() {
    await this.chromium.close();
    this.server.close();
    this.server.closeAllConnections();
  }
}

/** What is wrong with a list that should be 0, 1, 2 … up to `length`. */
export function faults(list, length) {
  const found = [];
  for (let i = 0; i < Math.max(list.length, length) && found.length < 5; i++) {
    if (list[i] !== i) found.push(`at ${i}: ${list.slice(Math.max(0, i - 2), i + 3)}`);
  }
  return found;
}
