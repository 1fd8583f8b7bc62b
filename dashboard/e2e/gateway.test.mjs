// The page against a real gateway: its demo, with a fault that is found and turned back. Skipped without
// CROSSFADE_BIN. The page is that of this folder, under the policy, with the gateway's answers behind it.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, request as ask } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { chromium } from "playwright-core";
import { POLICY } from "../test/mock.mjs";

const binary = process.env.CROSSFADE_BIN ?? "";
const executablePath = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";
const page = new URL("../dist/index.html", import.meta.url);
const shots = new URL("../shots/", import.meta.url).pathname;

async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Serves the page, and passes everything else on. */
async function front(port) {
  const server = createServer((request, response) => {
    if (request.url === "/dashboard") {
      const headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": POLICY,
      };
      response.writeHead(200, headers).end(readFileSync(page));
      return;
    }
    const { method, url, headers } = request;
    const onward = ask({ host: "127.0.0.1", port, method, path: url, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    onward.on("error", () => response.destroy());
    response.on("close", () => onward.destroy());
    request.pipe(onward);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return server;
}

test(
  "a fault of the new side is seen to be found and turned back",
  { skip: !existsSync(binary), timeout: 180_000 },
  async () => {
    const port = await freePort();
    const home = mkdtempSync(join(tmpdir(), "crossfade-dashboard-"));
    const args = [
      "demo",
      "--users",
      "200",
      "--listen",
      `127.0.0.1:${port}`,
      "--fault-after",
      "50",
      "--seconds",
      "170",
    ];
    const gateway = spawn(binary, args, {
      cwd: home,
      stdio: "ignore",
      env: { PATH: process.env.PATH },
    });
    const server = await front(port);
    const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
    try {
      const tab = await browser.newPage({ viewport: { width: 1360, height: 900 } });
      const complaints = [];
      tab.on("pageerror", (error) => complaints.push(error.message));
      tab.on("console", (message) => {
        if (message.type() === "error" && !/^Failed to load resource/.test(message.text()))
          complaints.push(message.text());
      });
      await tab.goto(`http://127.0.0.1:${server.address().port}/dashboard`);
      const banner = (words, timeout) =>
        tab.locator("#banner").filter({ hasText: words }).waitFor({ timeout });
      await banner(/All is well.*guardrails kept/, 40_000);
      await tab.locator("#fresh").filter({ hasText: /^live/ }).waitFor({ timeout: 10_000 });
      // A person's pause and resume, with the version that the page saw.
      for (const label of ["Pause", "Resume"]) {
        await tab.getByRole("button", { name: `${label} …` }).click();
        await tab.getByRole("textbox").fill("tried by the page");
        await tab.getByRole("button", { name: label, exact: true }).click();
        await tab.getByRole("dialog").waitFor({ state: "hidden" });
      }
      await tab
        .locator("#below")
        .filter({ hasText: "Tried by the page" })
        .waitFor({ timeout: 10_000 });
      mkdirSync(shots, { recursive: true });
      await tab.screenshot({ path: join(shots, "gateway-well.png"), fullPage: true });
      await banner(/Rolled back.*by gateway.*because/, 150_000);
      // What broke stays to be seen.
      await tab.locator('tr[data-outcome="violated"]').first().waitFor({ timeout: 10_000 });
      await pause(1_000);
      await tab.screenshot({ path: join(shots, "gateway-rolled-back.png"), fullPage: true });
      assert.deepEqual(complaints, []);
    } catch (err) {
      const tab = browser.contexts()[0]?.pages()[0];
      if (tab) {
        mkdirSync(shots, { recursive: true });
        await tab.screenshot({ path: join(shots, "gateway-failed.png"), fullPage: true });
      }
      throw err;
    } finally {
      await browser.close();
      server.closeAllConnections();
      server.close();
      if (gateway.exitCode === null) {
        gateway.kill("SIGKILL");
        await once(gateway, "exit");
      }
      rmSync(home, { recursive: true, force: true });
    }
  },
);
