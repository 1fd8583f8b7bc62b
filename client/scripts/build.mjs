// Writes dist/ (modules and their types) and the demo page with the client inside it.
// `--check` writes nothing and fails if the demo page is not that of the sources.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync, mkdirSync } from "node:fs";
import { build } from "esbuild";

const here = new URL("../", import.meta.url);
process.chdir(here.pathname);
const check = process.argv.includes("--check");

if (!check) {
  rmSync("dist", { recursive: true, force: true });
  const tsc = spawnSync("node_modules/.bin/tsc", ["-p", "tsconfig.build.json"], {
    stdio: "inherit",
  });
  if (tsc.status !== 0) process.exit(tsc.status ?? 1);
}

if (existsSync("demo/index.html")) {
  const { outputFiles } = await build({
    entryPoints: ["demo/demo.ts"],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    charset: "utf8",
    write: false,
  });
  const script = outputFiles[0].text.trim().replaceAll("</script", "<\\/script");
  const css = readFileSync("demo/demo.css", "utf8");
  const page = readFileSync("demo/index.html", "utf8")
    .replace('<link rel="stylesheet" href="demo.css" />', () => `<style>\n${css}</style>`)
    .replace(
      '<script type="module" src="demo.ts"></script>',
      () => `<script type="module">${script}</script>`,
    );
  if (check && readFileSync("demo/dist/index.html", "utf8") !== page) {
    console.error("demo/dist/index.html is not that of the sources: npm run build, and commit it");
    process.exit(1);
  }
  if (!check) {
    mkdirSync("demo/dist", { recursive: true });
    writeFileSync("demo/dist/index.html", page);
  }
}
