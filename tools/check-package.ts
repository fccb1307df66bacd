/**
 * @file `npm run check:package`: the package as its users get it. Packs it, installs the tarball
 * into an empty folder without running install scripts, and there asks `hadal` for its version,
 * imports every public entry, trains for three steps and serves what that made.
 *
 * `node` is the system's there, not the one this checkout installed: the launcher must find its
 * own.
 */
import { type SpawnSyncReturns, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { delimiter, dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import { VERSION } from "../src/base/version.ts";
import { ROOT } from "./repository.ts";

const STEP_MINUTES_MAX = 5;

const folder = mkdtempSync(join(tmpdir(), "hadal-package-"));
try {
  await checkPackage(folder);
  console.log("the package is in order");
} catch (error) {
  console.error(`the package is not in order: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}

async function checkPackage(home: string): Promise<void> {
  run("npm", ["pack", "--pack-destination", home], ROOT);
  const tarball = readdirSync(home).find((name) => name.endsWith(".tgz"));
  demand(tarball !== undefined, "npm pack made no tarball");

  const app = join(home, "app");
  mkdirSync(app);
  run("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", join(home, tarball!)], app);
  checkEntries(app);

  const launchers = [
    ["npx", "--no", "--", "hadal"],
    ["node", "node_modules/hadal/bin/hadal.js"],
  ] as const;
  for (const [program, ...words] of launchers) {
    const version = run(program, [...words, "--version"], app).trim();
    demand(version === `hadal ${VERSION}`, `${program}: hadal --version says ${version}`);
  }
  run("npx", ["--no", "--", "hadal", "--help"], app);
  trainThere(app);
  await serveThere(app);
}

/** Every entry of package.json leads to files that were packed, and Node can import it. */
function checkEntries(app: string): void {
  const packageFolder = join(app, "node_modules", "hadal");
  const manifest = createRequire(import.meta.url)(join(packageFolder, "package.json"));
  const entries: [string, string | Record<string, string>][] = Object.entries(manifest.exports);
  for (const [entry, target] of entries) {
    for (const file of typeof target === "string" ? [target] : Object.values(target)) {
      demand(existsSync(join(packageFolder, file)), `entry ${entry} leads to ${file}: not packed`);
    }
    if (entry.endsWith(".json")) continue;
    const name = join("hadal", entry).replaceAll("\\", "/");
    const script = `await import(${JSON.stringify(name)})`;
    run(process.execPath, ["--input-type=module", "--eval", script], app);
  }
}

function trainThere(app: string): void {
  const data = join(app, "data");
  mkdirSync(data);
  const installed = dirname(
    createRequire(pathToFileURL(join(app, "x.js"))).resolve("@types/node/package.json"),
  );
  for (const name of readdirSync(installed).filter((file) => file.endsWith(".d.ts"))) {
    copyFileSync(join(installed, name), join(data, name));
  }
  const args = [
    "--data",
    "data",
    "--preset",
    "tiny",
    "--steps",
    "3",
    "--out",
    "runs/first",
    "--json",
  ];
  const lines = run("npx", ["--no", "--", "hadal", "train", ...args], app)
    .trim()
    .split("\n");
  demand(
    typeof JSON.parse(lines.at(-1)!) === "object",
    "hadal train --json ended without an object",
  );
  const checkpoints = join(app, "runs/first/checkpoints");
  const made = existsSync(checkpoints) ? readdirSync(checkpoints) : [];
  demand(made.length > 0, "hadal train left no checkpoint in runs/first/checkpoints");
}

/** The run that was trained is served: its page, its answer, its end. */
async function serveThere(app: string): Promise<void> {
  const words = [
    "node_modules/hadal/bin/hadal.js",
    "serve",
    "--model",
    "runs/first",
    "--port",
    "0",
  ];
  const cache = ["--prefix-cache-dir", join(app, "prefixes")];
  console.log(`$ node ${words.join(" ")}`);
  const env = cleanEnvironment();
  const server = spawn("node", [...words, ...cache], { cwd: app, env });
  let printed = "";
  for (const stream of [server.stdout, server.stderr]) {
    stream.setEncoding("utf8").on("data", (part: string) => {
      printed += part;
    });
  }
  const ended = once(server, "exit");
  const timer = setTimeout(() => server.kill("SIGKILL"), STEP_MINUTES_MAX * 60_000);
  try {
    while (!printed.includes("max_tokens") && server.exitCode === null) {
      await Promise.race([once(server.stdout, "data"), ended]);
    }
    const url = /http:\/\/127\.0\.0\.1:\d+/.exec(printed)?.[0];
    demand(url !== undefined, `hadal serve printed no address: ${printed}`);
    const page = await (await fetch(`${url}/`)).text();
    demand(page.includes("<title>Hadal</title>"), "hadal serve has no page at /");
    const answer = await fetch(`${url}/v1/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ model: "first", prompt: "export ", max_tokens: 4 }),
    });
    demand(answer.status === 200, `hadal serve answers ${answer.status}: ${await answer.text()}`);
    server.kill("SIGTERM");
    const [code] = await ended;
    demand(code === 143, `hadal serve ended with ${code}: ${printed}`);
  } finally {
    clearTimeout(timer);
    server.kill("SIGKILL");
  }
}

/** Runs a program and returns its stdout; a failure carries everything it printed. */
function run(program: string, args: readonly string[], cwd: string): string {
  console.log(`$ ${program} ${args.join(" ")}`);
  const done: SpawnSyncReturns<string> = spawnSync(program, args, {
    cwd,
    env: cleanEnvironment(),
    encoding: "utf8",
    timeout: STEP_MINUTES_MAX * 60_000,
  });
  const printed = `${done.stdout ?? ""}${done.stderr ?? ""}${done.error?.message ?? ""}`;
  demand(done.status === 0, `${program} ended with ${done.status ?? done.signal}:\n${printed}`);
  return done.stdout;
}

/** Without what `npm run` added for this checkout, which would lead npm and `node` back into it. */
function cleanEnvironment(): Record<string, string | undefined> {
  const own = Object.entries(process.env).filter(
    ([name]) => !/^(npm_(package|lifecycle|config_local_prefix|command)|INIT_CWD)/.test(name),
  );
  const path = (process.env["PATH"] ?? "").split(delimiter);
  const outside = path.filter((entry) => !entry.startsWith(join(ROOT, "node_modules")));
  return { ...Object.fromEntries(own), PATH: outside.join(delimiter) };
}

function demand(condition: boolean, message: string): void {
  if (!condition) throw new Error(message);
}
