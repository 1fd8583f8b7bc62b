// The page in a real browser, under the policy it has to live under, against a gateway that only pretends.
import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { chromium } from "playwright-core";
import { Mock } from "../test/mock.mjs";
import { STATES } from "../test/states.mjs";

const executablePath = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";
let browser;
let mock;
let page;
let complaints;
/** What the browser says of an answer that is an error is no complaint about the page. */
const expected = /^Failed to load resource/;

before(async () => {
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
});
after(() => browser.close());

beforeEach(async () => {
  mock = await Mock.start();
  const context = await browser.newContext({ viewport: { width: 1360, height: 900 } });
  page = await context.newPage();
  page.setDefaultTimeout(8_000);
  complaints = [];
  page.on("pageerror", (error) => complaints.push(error.message));
  page.on("console", (message) => {
    const bad = message.type() === "error" || message.type() === "warning";
    if (bad && !expected.test(message.text())) complaints.push(message.text());
  });
});
afterEach(async () => {
  await page.context().close();
  await mock.stop();
  assert.deepEqual(complaints, []);
});

const open = async (state = "healthy") => {
  mock.show(state);
  await page.goto(`${mock.url}/dashboard`);
};
const banner = () => page.locator("#banner");
const says = (locator, words, timeout = 8_000) =>
  locator.filter({ hasText: words }).first().waitFor({ timeout });
const focused = () => page.evaluate(() => document.activeElement?.textContent?.trim() ?? "");

/** Goes on with the tabulator until the focus is on something, as somebody without a mouse does. */
async function tabTo(words) {
  for (let count = 0; count < 80; count += 1) {
    await page.keyboard.press("Tab");
    if (words.test(await focused())) return;
  }
  assert.fail(`the tabulator never reaches ${words}`);
}

const WORDS = {
  healthy: /All is well/,
  holding: /Holding.*46 of 520/,
  broken: /Broken.*3\.2 times as often/,
  "rolled-back": /Rolled back.*because interruptions.*41 of 500/,
  stopped: /Emergency stop.*user maria/,
  "cut-off": /Cut off.*cannot reach the store/,
  "no-rights": /All is well/,
  empty: /There is no rollout/,
  two: /Paused.*release freeze/,
  approval: /Your turn/,
};

for (const state of Object.keys(STATES)) {
  test(`${state}: the first line says it, and nothing is wider than a phone`, async () => {
    await open(state);
    await says(banner(), WORDS[state]);
    // The line is above everything else: it is seen without scrolling.
    const box = await banner().boundingBox();
    assert.ok(box.y < 200, `the banner begins at ${box.y}`);
    for (const width of [1360, 1100, 760, 700, 360]) {
      await page.setViewportSize({ width, height: 740 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert.ok(wide <= width, `${wide} is wider than ${width}`);
      const out = await page.evaluate(() =>
        [...document.querySelectorAll("table")]
          .filter(
            (table) =>
              table.getBoundingClientRect().right >
              table.closest(".card").getBoundingClientRect().right - 8,
          )
          .map(
            (table) =>
              `${table.caption?.textContent} ${table.getBoundingClientRect().right - table.closest(".card").getBoundingClientRect().right}`,
          ),
      );
      assert.deepEqual(out, [], `at ${width}`);
    }
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll("button, input, textarea, [role=img]")]
        .filter((one) => !(one.textContent.trim() || one.ariaLabel || one.labels?.length))
        .map((one) => one.outerHTML),
    );
    assert.deepEqual(nameless, []);
  });
}

test("each guardrail shows both arms, interval and limit, and one over time", async () => {
  await open("rolled-back");
  const row = page.getByRole("row", { name: /^Interruptions/i });
  await says(
    row,
    /8\.2.%.*41 of 500.*2\.53.%.*38 of 1.500.*3\.24.×.*1\.62 to 6\.1.×.*1\.1.×.*evidence 6\.1 of 4\.6.*violated/s,
  );
  assert.equal(
    await page
      .getByRole("row")
      .nth(1)
      .innerText()
      .then((text) => text.split("\n")[0]),
    "Interruptions",
  );
  await says(page.locator(".over"), /interruptions over time/i);
  assert.equal(await page.locator(".over canvas").count(), 2);
  await page.getByRole("button", { name: "error rate" }).click();
  await says(page.locator(".over"), /error rate over time/i);
  // It stays picked while data comes in.
  await page.waitForTimeout(500);
  await says(page.locator(".over"), /error rate over time/i);
  assert.equal(await page.locator(".latency canvas").count(), 1);
  await page.getByText("The three percentages over time").click();
  await page.locator("[data-key=shares] canvas").waitFor();
});

test("a rollback by keyboard alone, with reason and mode", async () => {
  await open();
  await says(banner(), /All is well/);
  await tabTo(/^Roll back/);
  await page.keyboard.press("Enter");
  const dialog = page.getByRole("dialog", { name: "Roll back: websocket-transport" });
  await dialog.waitFor();
  // Without a reason nothing happens.
  await tabTo(/^Roll back$/);
  await page.keyboard.press("Enter");
  assert.equal(mock.calls.length, 0);
  // The focus cannot leave the dialog for the page behind.
  for (let count = 0; count < 12; count += 1) {
    await page.keyboard.press("Tab");
    const inside = await page.evaluate(
      () => document.activeElement === document.body || !!document.activeElement.closest("dialog"),
    );
    assert.ok(inside, "the focus left the dialog");
  }
  await dialog.getByRole("textbox").focus();
  await page.keyboard.type("customers complain");
  await dialog.getByRole("radio", { name: /drain-back/ }).focus();
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("ArrowDown");
  await page.keyboard.press("Tab");
  await tabTo(/^Roll back$/);
  await page.keyboard.press("Enter");
  await dialog.waitFor({ state: "hidden" });
  assert.deepEqual(mock.calls, [
    {
      method: "POST",
      path: "/api/migration/rollback/websocket-transport",
      body: { version: 17, reason: "customers complain", mode: "hard" },
      bearer: "",
    },
  ]);
  await says(banner(), /Rolled back.*by key ops.*customers complain/);
  await says(page.locator("#saying"), /Roll back of websocket-transport: done/);
});

test("Escape leaves everything as it is, and the focus goes back to the button", async () => {
  await open();
  await page.getByRole("button", { name: "Pause …" }).click();
  await page.getByRole("dialog").waitFor();
  await page.keyboard.type("not yet");
  await page.keyboard.press("Escape");
  assert.equal(await focused(), "Pause …");
  assert.equal(mock.calls.length, 0);
  // What was typed is not lost.
  await page.keyboard.press("Enter");
  assert.equal(await page.getByRole("textbox").inputValue(), "not yet");
});

test("what is typed and where the focus is survive the data that comes in", async () => {
  mock.every = 50;
  await open();
  await page.getByRole("button", { name: "Freeze …" }).focus();
  await page.waitForTimeout(400);
  assert.equal(await focused(), "Freeze …");
  await page.keyboard.press("Enter");
  await page.keyboard.type("a reason that takes its time", { delay: 15 });
  assert.equal(await page.getByRole("textbox").inputValue(), "a reason that takes its time");
});

test("every control makes the call that the gateway knows", async () => {
  const orders = [
    [
      "healthy",
      "Advance",
      { version: 17, reason: "r" },
      "409",
      /only a running rollout can be advanced/,
    ],
    ["healthy", "Pause", { version: 17, reason: "r" }],
    ["healthy", "Freeze", { version: 17, reason: "r", mode: "freeze" }],
    ["two", "Resume", { version: 21, reason: "r" }],
    ["approval", "Approve", { version: 17, reason: "r" }],
    ["rolled-back", "Start again", { version: 18, reason: "r" }],
  ];
  const verbs = {
    Advance: "advance",
    Pause: "pause",
    Freeze: "stop",
    Resume: "resume",
    Approve: "approve",
    "Start again": "start",
  };
  await open();
  for (const [state, label, body, , problem] of orders) {
    mock.show(state);
    mock.calls = [];
    const button = page.getByRole("button", { name: `${label} …`, exact: true }).first();
    await button.click();
    const dialog = page.getByRole("dialog");
    await dialog.getByRole("textbox").fill("r");
    await dialog.getByRole("button", { name: label, exact: true }).click();
    if (problem) {
      await says(dialog, problem);
      await dialog.getByRole("button", { name: "Leave it" }).click();
    }
    await dialog.waitFor({ state: "hidden" });
    assert.deepEqual(
      [mock.calls[0].path, mock.calls[0].body],
      [`/api/migration/${verbs[label]}/websocket-transport`, body],
    );
  }
  mock.show("healthy");
  await page.getByRole("button", { name: "Set percentage …" }).first().click();
  await page.getByRole("spinbutton").fill("5");
  await page.getByRole("textbox").fill("smaller");
  await page.getByRole("button", { name: "Set percentage", exact: true }).click();
  await page.getByRole("dialog").waitFor({ state: "hidden" });
  const call = mock.calls.at(-1);
  assert.deepEqual(
    [call.method, call.path, call.body],
    [
      "PUT",
      "/api/migration/feature-flags/websocket-transport",
      { version: 17, reason: "smaller", rolloutPercentage: 5 },
    ],
  );
  await page.getByText("The three percentages").waitFor();
});

test("the emergency stop is one press and a confirmation away, and suggests why", async () => {
  await open("broken");
  await page.getByRole("button", { name: "Emergency stop …" }).click();
  const reason = page.getByRole("textbox");
  assert.match(await reason.inputValue(), /3\.2 times as often/);
  await page.getByRole("button", { name: "Emergency stop", exact: true }).click();
  await says(banner(), /Emergency stop/);
  assert.equal(mock.calls[0].path, "/api/migration/emergency-stop");
  assert.match(mock.calls[0].body.reason, /3\.2 times as often/);
});

test("a stop that holds on this node only is said so", async () => {
  mock.storeAway = true;
  await open("cut-off");
  await page.getByRole("button", { name: "Roll back …" }).click();
  await page.getByRole("textbox").fill("now");
  await page.getByRole("button", { name: "Roll back", exact: true }).click();
  await says(page.locator("#saying [data-level=worry]"), /stopped on this node; the store is away/);
});

test("a 409 shows what changed meanwhile, and looks again", async () => {
  await open();
  await page.getByRole("button", { name: "Roll back …" }).click();
  await page.getByRole("textbox").fill("it is slow");
  mock.faster = true;
  await page.getByRole("button", { name: "Roll back", exact: true }).click();
  const problem = page.locator("dialog .problem");
  await says(
    problem,
    /Nothing was done: it was changed meanwhile by user maria.*version 18 now; you saw 17/,
  );
  await says(problem, /status: running → paused.*reason: .* → I look at it/s);
  assert.equal(
    await page.getByRole("button", { name: "Roll back", exact: true }).isVisible(),
    false,
  );
  assert.equal(await focused(), "Look again");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor({ state: "hidden" });
  await says(banner(), /Paused.*user maria: I look at it/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "rollout-websocket-transport");
  // With open eyes it can be done, and the reason is still there.
  await page.getByRole("button", { name: "Roll back …" }).click();
  assert.equal(await page.getByRole("textbox").inputValue(), "it is slow");
  await page.getByRole("button", { name: "Roll back", exact: true }).click();
  await says(banner(), /Rolled back/);
  assert.equal(mock.calls.at(-1).body.version, 18);
});

test("without a token it asks for one, keeps it in the tab only, and sends it", async () => {
  mock.token = "secret";
  await open();
  await says(banner(), /Not signed in.*a token is needed/);
  const field = page.getByLabel(/Admin key or token/);
  await field.fill("wrong");
  await page.keyboard.press("Enter");
  await says(page.locator("#token"), /not one of this gateway's/);
  await field.fill("nothing");
  await page.keyboard.press("Enter");
  await says(banner(), /Not allowed.*lacks the scope "read"/);
  await field.fill("secret");
  await page.keyboard.press("Enter");
  await says(banner(), /All is well/);
  assert.equal(await page.locator("#token").isVisible(), false);
  const kept = await page.evaluate(() => [
    sessionStorage.length,
    localStorage.length,
    document.cookie,
  ]);
  assert.deepEqual(kept, [1, 0, ""]);
  await page.getByRole("button", { name: "Pause …" }).click();
  await page.getByRole("textbox").fill("r");
  await page.getByRole("button", { name: "Pause", exact: true }).click();
  await says(banner(), /Paused/);
  assert.equal(mock.calls[0].bearer, "secret");
});

test("a token that may only look changes nothing and is told so", async () => {
  await open("no-rights");
  await says(page.locator(".rights"), /your token lacks the scope admin/);
  assert.equal(await page.getByRole("button", { name: /…$/ }).count(), 0);
  // And where the page was not told beforehand, the answer says it.
  mock.lookingToken = "look";
  mock.token = "secret";
  mock.show("healthy");
  await page.getByRole("button", { name: "Token", exact: true }).click();
  await page.getByLabel(/Admin key or token/).fill("look");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Pause …" }).click();
  await page.getByRole("textbox").fill("r");
  await page.getByRole("button", { name: "Pause", exact: true }).click();
  await says(page.locator("dialog"), /You may not do this: the token lacks the scope "admin"/);
  await page.getByRole("button", { name: "Use another token" }).click();
  assert.equal(await page.evaluate(() => document.activeElement.id), "token-value");
});

test("data older than 5 s is said loudly, and it finds back by itself", async () => {
  await open();
  await says(page.locator("#fresh"), /live, 0 s old/);
  mock.silent = true;
  mock.away = true;
  mock.cut();
  const began = Date.now();
  await says(banner(), /Not live.*What you see is \d+ s old.*the gateway cannot be reached/, 9_000);
  assert.ok(Date.now() - began > 4_000, "it was loud too early");
  await says(banner(), /Last known: All is well/);
  assert.match(await page.title(), /^\? /);
  await says(page.locator("#fresh [data-stale]"), /no contact/);
  mock.silent = mock.away = false;
  await says(banner(), /^.?All is well/, 9_000);
});

test("where there is no stream it asks, and says so", async () => {
  mock.streams = false;
  await open();
  await says(page.locator("#fresh"), /every 2 s/);
  mock.state = "rolled-back";
  await says(banner(), /Rolled back/);
});

test("a stream that falls silent is given up for asking", async () => {
  await open();
  await says(banner(), /All is well/);
  mock.silent = true;
  mock.state = "holding";
  await says(banner(), /Holding/, 12_000);
});

test("an alert is acknowledged", async () => {
  await open("rolled-back");
  await page.getByRole("button", { name: /^Acknowledge/ }).click();
  await says(page.locator("[data-key=alerts]"), /None is open/);
  assert.equal(mock.calls[0].path, "/api/migration/alerts/a3/acknowledge");
});

test("nothing that a gateway says becomes markup", async () => {
  await open();
  await says(banner(), /All is well/);
  mock.said = () => {
    const said = STATES["rolled-back"](Date.now());
    said.flags[0].reason = "<img src=x onerror=alert(1)>";
    said.history[0].reason = "<script>alert(1)</script>";
    return said;
  };
  await says(banner(), /<img src=x/);
  assert.equal(await page.locator("img, #below script").count(), 0);
});

test("dark and light are told apart, and drawings follow", async () => {
  await open();
  await page.emulateMedia({ colorScheme: "light" });
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await page.emulateMedia({ colorScheme: "dark" });
  assert.notEqual(await ground(), light);
  await page.locator(".over canvas").first().waitFor();
});
