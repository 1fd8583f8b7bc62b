// The demo page as it is committed: three clients that count what is missing and repeated.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Browser, Gateway } from "./support.mjs";

const html = readFileSync(new URL("../demo/dist/index.html", import.meta.url), "utf8");

test("the demo moves a client while events flow, by keyboard too", async (t) => {
  const gateway = await Gateway.start();
  const browser = await Browser.start({ html });
  t.after(async () => {
    await browser.stop();
    await gateway.stop();
  });
  const page = await browser.page(`?gateway=${gateway.url}`);
  const pane = page.locator(".pane").nth(1);
  await page.getByRole("button", { name: "5 events a second" }).click();
  const text = (selector) => pane.locator(selector).textContent();
  for (const [from, to] of [
    ["WebSocket", "Server-Sent Events"],
    ["Server-Sent Events", "WebSocket"],
  ]) {
    const move = pane.getByRole("button", { name: `Move to ${to}` });
    await move.waitFor();
    assert.equal(await text(".badge"), from);
    await move.focus();
    await page.keyboard.press("Enter");
    await pane.locator(".badge", { hasText: to }).waitFor();
    const before = Number(await text(".received"));
    await page.waitForFunction(
      (n) => Number(document.querySelectorAll(".received")[1].textContent) > n + 5,
      before,
    );
  }
  await pane.getByPlaceholder("Say something").fill("hello <b>all</b>");
  await page.keyboard.press("Enter");
  await page.locator(".pane").nth(2).getByText("hello <b>all</b>").waitFor();
  await page.locator(".pane").nth(0).locator(".members li").nth(2).waitFor();
  assert.deepEqual(
    await page.locator("dd:is(.missing, .repeated)").allTextContents(),
    Array(6).fill("0"),
  );
  assert.equal(await pane.locator(".strip .switch").count(), 2);
  assert.deepEqual(page.errors, []);
});
