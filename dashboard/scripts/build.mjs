// Writes dist/index.html: the page with its script and its style inside it, so that the gateway carries
// one text and nothing is fetched from elsewhere. `--check` writes nothing and fails if it is not that of
// the sources, or too large.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const BYTES_MAX = 150_000;

process.chdir(new URL("../", import.meta.url).pathname);
const check = process.argv.includes("--check");

const made = await build({
  entryPoints: ["src/page.ts", "src/page.css"],
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  write: false,
});
const text = (end) => made.outputFiles.find((file) => file.path.endsWith(end)).text.trim();
const script = text(".js").replaceAll("</script", "<\\/script");
// Its licence wants to travel with it.
const licence = readFileSync("node_modules/uplot/LICENSE", "utf8").trim();
const notice = `<!-- Contains uPlot.\n${licence}\n-->`;
const page = readFileSync("src/index.html", "utf8")
  .replace("<html", () => `${notice}\n<html`)
  .replace('<link rel="stylesheet" href="page.css" />', () => `<style>${text(".css")}</style>`)
  .replace(
    '<script type="module" src="page.ts"></script>',
    () => `<script type="module">${script}</script>`,
  );
const size = Buffer.byteLength(page);
if (size > BYTES_MAX) {
  console.error(`dist/index.html would have ${size} bytes, ${BYTES_MAX} are allowed`);
  process.exit(1);
}
if (check && readFileSync("dist/index.html", "utf8") !== page) {
  console.error("dist/index.html is not that of the sources: npm run build, and commit it");
  process.exit(1);
}
if (!check) {
  mkdirSync("dist", { recursive: true });
  writeFileSync("dist/index.html", page);
}
console.log(`dist/index.html: ${size} bytes`);
