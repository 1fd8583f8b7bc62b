// The examples of the repository, run as their first lines say.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join } from "node:path";
import { test } from "node:test";
import { chromium } from "playwright-core";
import { eventually, Gateway } from "./support.mjs";

const root = new URL("../..", import.meta.url).pathname;
const target = process.env.CROSSFADE_BIN ?? join(root, "target/debug/crossfade");
const TYPES = { ".html": "text/html", ".js": "text/javascript" };

/** Runs a program until it is stopped; its output by line. */
function run(t, program, ...args) {
  const child = spawn(program, args, { cwd: root, stdio: ["ignore", "pipe", "inherit"] });
  const lines = [];
  let rest = "";
  child.stdout.on("data", (piece) => {
    const whole = (rest + piece).split("\n");
    rest = whole.pop();
    lines.push(...whole);
  });
  t.after(() => child.kill("SIGKILL"));
  return { lines, ended: once(child, "exit").then(([code]) => code) };
}

/** Publishes, and waits until a subscriber that has just been started shows it. */
async function publishUntilShown(gateway, subscriber) {
  const show = async (n) => {
    const body = JSON.stringify({ channel: "news", name: "probe", data: n });
    await fetch(`${gateway.url}/api/publish`, { method: "POST", body });
  };
  let n = 0;
  await eventually("the subscriber has connected", async () => {
    await show(n++);
    return subscriber.lines.length > 0;
  });
}

for (const [name, program, ...args] of [
  ["Rust", join(target, "../examples/subscriber")],
  ["Python", "python3", "examples/subscribe.py"],
  ["Node", process.execPath, "examples/subscribe.mjs"],
]) {
  test(`the subscriber in ${name} receives what both publishers send, over a restart`, async (t) => {
    const gateway = await Gateway.start();
    t.after(() => gateway.stop());
    const url = name === "Rust" ? `${gateway.url.replace("http", "ws")}/ws` : gateway.url;
    const subscriber = run(t, program, ...args, url, "news");
    await publishUntilShown(gateway, subscriber);
    const publishers = [
      [process.execPath, "examples/publish.mjs"],
      ["python3", "examples/publish.py"],
    ];
    const send = async (which, data) => {
      const [command, script] = publishers[which];
      const publisher = run(t, command, script, gateway.url, "news", JSON.stringify(data), "said");
      assert.equal(await publisher.ended, 0);
      assert.match(publisher.lines[0], /"duplicate": ?false/);
    };
    await send(0, { from: "node" });
    await gateway.kill();
    await gateway.run();
    await send(1, { from: "python" });
    const said = () => subscriber.lines.filter((line) => line.includes("said"));
    await eventually("both have arrived", () => said().length >= 2);
    assert.match(said()[0], /\{"from": ?"node"\}/);
    assert.match(said()[1], /\{"from": ?"python"\}/);
    assert.equal(said().length, 2);
  });
}

test("two people chat, see each other, and find the history", async (t) => {
  const gateway = await Gateway.start();
  const pages = createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://localhost");
    const path = pathname.endsWith("/") ? `${pathname}index.html` : pathname;
    try {
      const type = TYPES[extname(path)] ?? "application/octet-stream";
      response.setHeader("content-type", type).end(readFileSync(join(root, path)));
    } catch {
      response.writeHead(404).end();
    }
  }).listen(0, "127.0.0.1");
  await once(pages, "listening");
  const executablePath = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  t.after(async () => {
    await browser.close();
    pages.close();
    await gateway.stop();
  });
  const errors = [];
  const open = async () => {
    const page = await browser.newPage();
    page.on("pageerror", (error) => errors.push(error.message));
    const { port } = pages.address();
    await page.goto(`http://127.0.0.1:${port}/examples/chat/?gateway=${gateway.url}`);
    return page;
  };
  const say = async (page, name, text) => {
    await page.getByLabel("Your name").fill(name);
    await page.getByLabel("Message", { exact: true }).fill(text);
    await page.getByRole("button", { name: "Send" }).click();
  };
  const [ann, ben] = [await open(), await open()];
  await say(ann, "Ann", "hello <i>Ben</i>");
  await ben.getByText("hello <i>Ben</i>").waitFor();
  await say(ben, "Ben", "hello Ann");
  await ann.getByText("hello Ann").waitFor();
  await ann.getByText("2 here: Ann, Ben").or(ann.getByText("2 here: Ben, Ann")).waitFor();
  const late = await open();
  await late.getByText("hello Ann").waitFor();
  assert.deepEqual(await late.locator("#messages li").allTextContents(), [
    "Ben hello Ann",
    "Ann hello <i>Ben</i>",
  ]);
  assert.deepEqual(errors, []);
});
