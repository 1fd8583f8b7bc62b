// What npm would publish, installed into an empty Vite project in a temporary folder and used there:
// type-checked and built, with the React bindings and without.
import { execFileSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const client = new URL("../", import.meta.url).pathname;
const home = mkdtempSync(join(tmpdir(), "crossfade-pack-"));
const run = (command, ...options) =>
  execFileSync(command, options, { cwd: home, stdio: ["ignore", "pipe", "inherit"] }).toString();

const MAIN = `
import { createClient, CrossfadeError, type Message } from "@crossfade/client";

type Orders = { created: { total: number }; gone: { id: string } };
const client = createClient({ url: "https://events.example.com", getToken: async () => "t" });
const orders = client.channel<Orders>("orders:42");
const stop: () => void = orders.on("created", ({ total }, message: Message) => {
  document.title = \`\${total.toFixed(2)} at \${message.position}\`;
});
// @ts-expect-error a created order has no id
orders.on("created", ({ id }) => id);
client.on("migrated", ({ from, to }) => console.log(from, to));
try {
  const { position } = await orders.publish({ id: "7" }, { name: "gone" });
  for await (const { data } of orders) console.log(position, data);
} catch (cause) {
  if (cause instanceof CrossfadeError) console.log(cause.code);
}
stop();
`;
const REACT = `
import { createClient } from "@crossfade/client";
import { useChannel, usePresence } from "@crossfade/client/react";

const client = createClient();
export function Room() {
  useChannel<{ said: string }>(client, "room:1", ({ data }) => console.log(data.length));
  const { members, count } = usePresence<{ name: string }>(client, "room:1", { name: "Ann" });
  return [count, ...members.map(({ state }) => state?.name)].join(" ");
}
`;

try {
  const [{ filename, files }] = JSON.parse(
    execFileSync("npm", ["pack", "--json", "--pack-destination", home], {
      cwd: client,
      stdio: ["ignore", "pipe", "ignore"],
    }),
  );
  const odd = files.filter(
    ({ path }) => !/^(dist\/|README\.md$|package\.json$|LICENSE$)/.test(path),
  );
  if (odd.length) throw new Error(`not to be published: ${odd.map(({ path }) => path)}`);
  writeFileSync(join(home, "package.json"), '{"name":"empty","private":true,"type":"module"}');
  run(
    "npm",
    "install",
    "--no-audit",
    "--no-fund",
    "--offline",
    "--ignore-scripts",
    "--silent",
    filename,
  );
  if (
    readdirSync(join(home, "node_modules")).some(
      (name) => !["@crossfade", ".package-lock.json"].includes(name),
    )
  ) {
    throw new Error("the package brought others with it");
  }
  // Tools and React are those at hand: the package's own dependencies are none.
  const borrow = (name) => {
    mkdirSync(join(home, "node_modules", name, ".."), { recursive: true });
    symlinkSync(join(client, "node_modules", name), join(home, "node_modules", name));
  };
  for (const name of ["vite", "typescript"]) borrow(name);
  const options = {
    target: "ES2022",
    module: "ESNext",
    moduleResolution: "bundler",
    strict: true,
    noEmit: true,
    lib: ["ES2022", "DOM", "DOM.Iterable"],
    types: [],
    exactOptionalPropertyTypes: true,
    skipLibCheck: false,
  };
  const check = (files) => {
    writeFileSync(join(home, "tsconfig.json"), JSON.stringify({ compilerOptions: options, files }));
    run(process.execPath, join(client, "node_modules/typescript/bin/tsc"), "-p", ".");
  };
  writeFileSync(join(home, "main.ts"), MAIN);
  check(["main.ts"]);
  writeFileSync(join(home, "index.html"), '<script type="module" src="/main.ts"></script>');
  run(
    process.execPath,
    join(client, "node_modules/vite/bin/vite.js"),
    "build",
    "--logLevel",
    "error",
  );
  const [bundle] = readdirSync(join(home, "dist/assets")).filter((name) => name.endsWith(".js"));
  if (readFileSync(join(home, "dist/assets", bundle), "utf8").includes("useSyncExternalStore")) {
    throw new Error("the core entry brings the React bindings with it");
  }
  for (const name of ["react", "@types/react", "csstype"])
    if (existsSync(join(client, "node_modules", name))) borrow(name);
  writeFileSync(join(home, "room.ts"), REACT);
  check(["main.ts", "room.ts"]);
  console.log(
    `packed ${files.length} files; installed, type-checked and built in an empty project`,
  );
} finally {
  rmSync(home, { recursive: true, force: true });
}
