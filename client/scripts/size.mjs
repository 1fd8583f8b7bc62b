// What a page pays: the core entry, bundled, minified and compressed. Fails over the budget.
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const BUDGET = 9_600;

process.chdir(new URL("../", import.meta.url).pathname);
const { outputFiles } = await build({
  stdin: { contents: 'export { createClient } from "./src/index.ts";', resolveDir: "." },
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  write: false,
});
const [bundle] = outputFiles;
const size = gzipSync(bundle.contents, { level: 9 }).length;
console.log(`core: ${bundle.contents.length} bytes minified, ${size} with gzip, of ${BUDGET}`);
if (BUDGET < size) {
  console.error(`${size - BUDGET} bytes over the budget`);
  process.exit(1);
}
