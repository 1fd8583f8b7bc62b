// Pictures of every state in light, dark and on a phone, to be looked at: `node e2e/shots.mjs [STATE…]`
// writes them to shots/.
import { mkdirSync } from "node:fs";
import { chromium } from "playwright-core";
import { Mock } from "../test/mock.mjs";
import { STATES } from "../test/states.mjs";

const executablePath = process.env.CHROMIUM_BIN ?? "/usr/bin/chromium";
const LOOKS = {
  light: { colorScheme: "light", viewport: { width: 1360, height: 900 } },
  dark: { colorScheme: "dark", viewport: { width: 1360, height: 900 } },
  phone: {
    colorScheme: "light",
    viewport: { width: 360, height: 740 },
    isMobile: true,
    hasTouch: true,
  },
};

process.chdir(new URL("../", import.meta.url).pathname);
mkdirSync("shots", { recursive: true });
const wanted = process.argv.slice(2);
const mock = await Mock.start();
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
for (const state of wanted.length ? wanted : Object.keys(STATES)) {
  mock.show(state);
  for (const [look, options] of Object.entries(LOOKS)) {
    const page = await browser.newPage(options);
    page.on("console", (message) => console.log(`${state} ${look}: ${message.text()}`));
    page.on("pageerror", (error) => console.log(`${state} ${look}: ${error.stack}`));
    await page.goto(`${mock.url}/dashboard`);
    await page.locator("#main > *").first().waitFor();
    await page.waitForTimeout(700);
    await page.screenshot({ path: `shots/${state}-${look}.png`, fullPage: true });
    await page.screenshot({ path: `shots/${state}-${look}-top.png` });
    await page.close();
  }
}
await browser.close();
await mock.stop();
