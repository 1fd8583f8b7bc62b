// docs/migrating.md, followed line by line: its commands are run in one shell, what it says they print is
// compared with what they print, and a page of the old system stays open in a browser from the first step
// to the last. Only the ports are others.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { eventually, faults } from "./support.mjs";

const root = new URL("../..", import.meta.url).pathname;
const binary = process.env.CROSSFADE_BIN ?? join(root, "target/debug/crossfade");
const home = mkdtempSync(join(tmpdir(), "crossfade-migrating-"));
const ports = {};
const children = [];
let shell;
let browser;
let page;
let publisher;

/** The page's sections: the commands of each, with what is to come out. */
function sections() {
  let text = readFileSync(join(root, "docs/migrating.md"), "utf8");
  for (const [written, real] of Object.entries(ports)) text = text.replaceAll(written, real);
  const found = new Map();
  for (const section of text.split(/^## /m).slice(1)) {
    const blocks = section.matchAll(/^```console\n([\s\S]*?)^```$/gm);
    found.set(
      section[0],
      [...blocks].flatMap(([, block]) => commands(block)),
    );
  }
  return found;
}

function commands(block) {
  const found = [];
  let end;
  for (const line of block.trimEnd().split("\n")) {
    const last = found.at(-1);
    if (end) {
      last.command += `\n${line}`;
      if (line === end) end = undefined;
    } else if (line.startsWith("$ ")) {
      found.push({ command: line.slice(2), output: [] });
      end = /<<'(\w+)'$/.exec(line)?.[1];
    } else last.output.push(line);
  }
  return found;
}

/** One bash that all of it is typed into. */
class Shell {
  #process = spawn("bash", ["--norc"], {
    cwd: home,
    env: { PATH: `${home}/bin:${process.env.PATH}`, HOME: home, NO_COLOR: "1" },
    // A group of its own: what it started ends with it.
    detached: true,
  });
  #output = "";
  #number = 0;

  constructor() {
    for (const stream of [this.#process.stdout, this.#process.stderr]) {
      stream.on("data", (piece) => (this.#output += piece));
    }
  }

  async run({ command, output }) {
    const mark = `--- ${++this.#number} `;
    this.#output = "";
    this.#process.stdin.write(`${command}\necho "${mark}$?"\n`);
    await eventually(
      `${command} ends; so far it said ${this.#output}`,
      () => new RegExp(`^${mark}\\d+$`, "m").test(this.#output),
      60_000,
    );
    const [said, status] = this.#output.split(mark);
    assert.equal(status.trim(), "0", `${command}\n${said}`);
    assert.deepEqual(said.trimEnd().split("\n").filter(Boolean), output, command);
  }

  stop() {
    try {
      process.kill(-this.#process.pid, "SIGKILL");
    } catch {}
  }
}

/** A plain redis-cli that PUBLISHes 0, 1, 2 … to room.42. */
class Publisher {
  sent = 0;
  #cli = start("redis-cli", ["-p", ports["6379"]]);
  #timer;

  one() {
    const n = this.sent++;
    const payload = JSON.stringify({ n, meta: { id: `m-${n}` } });
    this.#cli.stdin.write(`PUBLISH room.42 '${payload}'\n`);
  }

  begin() {
    this.#timer = setInterval(() => this.one(), 10);
  }

  pause() {
    clearInterval(this.#timer);
  }
}

function start(command, args) {
  const child = spawn(command, args, { stdio: ["pipe", "pipe", "inherit"], cwd: home });
  children.push(child);
  return child;
}

async function freePort() {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return String(port);
}

before(async () => {
  for (const written of ["6379", "8080", "8081"]) ports[written] = await freePort();
  const arguments_ = ["--port", ports["6379"], "--bind", "127.0.0.1", "--save", ""];
  const redis = start("redis-server", arguments_);
  let said = "";
  redis.stdout.on("data", (piece) => (said += piece));
  await eventually("redis listens", () => said.includes("Ready to accept connections"));
  const old = start("node", [join(root, "tests/legacy/server.mjs"), "--redis", ports["6379"]]);
  const [line] = await once(old.stdout, "data");
  ports["3000"] = /listening (\d+)/.exec(line)[1];
  const bin = join(home, "bin");
  await once(spawn("mkdir", [bin]), "exit");
  symlinkSync(binary, join(bin, "crossfade"));
  writeFileSync(
    join(bin, "redis-cli"),
    `#!/bin/sh\nexec /usr/bin/env -i PATH=/usr/bin:/bin redis-cli -p ${ports["6379"]} "$@"\n`,
  );
  chmodSync(join(bin, "redis-cli"), 0o755);
  shell = new Shell();
  publisher = new Publisher();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM_BIN ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-dev-shm-usage"],
  });
});

after(async () => {
  publisher?.pause();
  await browser?.close();
  shell?.stop();
  for (const child of children) child.kill("SIGKILL");
  rmSync(home, { recursive: true, force: true });
});

async function follow(step) {
  const commands = sections().get(step);
  assert.ok(commands?.length, `section ${step} has commands`);
  for (const command of commands) await shell.run(command);
}

const got = () => page.evaluate(() => window.got);

/** The page has everything that was sent, once and in order. */
async function expectAll(step) {
  publisher.pause();
  await eventually(
    `the page has ${publisher.sent} events (${step})`,
    async () => (await got()).length >= publisher.sent,
  ).catch(async (error) => {
    throw new Error(`${error.message}: ${faults(await got(), publisher.sent)}`);
  });
  // What would come twice had the time to: one more event is behind it.
  publisher.one();
  await eventually("one more", async () => (await got()).at(-1) === publisher.sent - 1);
  assert.deepEqual(faults(await got(), publisher.sent), [], step);
}

/** Publishes for a while, and the page gets all of it. */
async function live(step, events = 100) {
  const until = publisher.sent + events;
  publisher.begin();
  await eventually("they are sent", () => publisher.sent >= until);
  await expectAll(step);
}

/** The stream is there (again), and its server listens. */
async function reopened(before) {
  await eventually("the page's stream is open", async () => {
    return (await page.evaluate(() => window.opened)) > before;
  });
}

const opened = () => page.evaluate(() => window.opened);

test("1 the gateway is put in front, and nobody notices", { timeout: 120_000 }, async () => {
  await follow("1");
  page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${ports["8080"]}/`);
  await reopened(0);
  await live("through the gateway");
});

test("2 what is PUBLISHed is taken in", { timeout: 120_000 }, async () => {
  const before = await opened();
  await follow("2");
  await reopened(before);
  await live("while it is taken in too");
});

test("3 both sides are compared, and agree", { timeout: 120_000 }, async () => {
  const before = await opened();
  const commands = sections().get("3");
  const asking = commands.findIndex(({ command }) => command.includes("/api/migration/shadow"));
  for (const command of commands.slice(0, asking)) await shell.run(command);
  await reopened(before);
  const from = publisher.sent;
  await live("in the shadow", 300);
  const report = async () => {
    const key = readFileSync(join(home, "operations.key"), "utf8").trim();
    const headers = { authorization: `Bearer ${key}` };
    const url = `http://127.0.0.1:${ports["8080"]}/api/migration/shadow`;
    return (await fetch(url, { headers })).json();
  };
  const all = publisher.sent - from;
  await eventually("all of it is compared", async () => {
    return (await report()).channels["room:42"]?.matched >= all;
  });
  const room = (await report()).channels["room:42"];
  assert.equal(room.matched, all);
  assert.equal((await report()).clean, true, JSON.stringify(await report()));
  assert.equal(room.extra + room.repeated + room.skipped, 0, JSON.stringify(room));
  for (const command of commands.slice(asking)) await shell.run(command);
});

test("4 the gateway serves the stream, while events flow", { timeout: 120_000 }, async () => {
  const before = await opened();
  publisher.begin();
  await follow("4");
  await reopened(before);
  const until = publisher.sent + 200;
  await eventually("more are sent", () => publisher.sent >= until);
  await expectAll("from the old server to the gateway");
  // And once more, while the gateway serves: nothing of a restart is missed.
  publisher.begin();
  await shell.run({ command: `restart ${ports["8081"]}; restart ${ports["8080"]}`, output: [] });
  await expectAll("over a restart");
});

test(
  "5 a page with the client goes to WebSocket, the unchanged one stays",
  { timeout: 120_000 },
  async () => {
    const [start, half, all] = sections().get("5");
    await shell.run(start);
    const { outputFiles } = await build({
      entryPoints: [join(root, "client/src/index.ts")],
      bundle: true,
      format: "iife",
      globalName: "crossfade",
      write: false,
    });
    const other = await browser.newPage();
    await other.goto(`http://127.0.0.1:${ports["8080"]}/`);
    await other.addScriptTag({ content: outputFiles[0].text });
    const from = publisher.sent;
    await other.evaluate(() => {
      window.news = [];
      window.client = crossfade.createClient({ url: location.origin });
      client.channel("room:42").listen((message) => news.push(message.data.n));
    });
    await other.waitForFunction(() => client.state === "connected");
    assert.equal(await other.evaluate(() => client.transport), "sse");
    publisher.begin();
    await other.waitForFunction(() => news.length > 50);
    await shell.run(half);
    await shell.run(all);
    await other.waitForFunction(() => client.transport === "websocket");
    const until = publisher.sent + 100;
    await eventually("more are sent", () => publisher.sent >= until);
    await expectAll("while another page moves to WebSocket");
    await eventually("the other page has them too", async () => {
      return (await other.evaluate(() => news.at(-1))) === publisher.sent - 1;
    });
    const news = await other.evaluate(() => window.news);
    assert.deepEqual(
      news,
      [...Array(publisher.sent - news[0]).keys()].map((n) => n + news[0]),
    );
    assert.ok(news[0] >= from);
    await other.close();
  },
);

test("and back, as the page says", { timeout: 120_000 }, async () => {
  const before = await opened();
  const back = 'crossfade rollout rollback legacy-takeover --reason "to see the way back"';
  const said =
    'legacy-takeover  legacy -> gateway  0 %  rolled back, drain-back  version 3  "to see the way back"';
  await shell.run({ command: back, output: [said] });
  await reopened(before);
  await live("with the old server again");
});
