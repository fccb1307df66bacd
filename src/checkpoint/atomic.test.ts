/** @file Tests of atomic writing: a child is killed before every change it makes, and at random. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { siblingModule } from "../base/modules.ts";
import { Random } from "../base/random.ts";
import {
  makeDirectories,
  removeStaleTemporaries,
  replaceDirectory,
  writeFileAtomically,
} from "./atomic.ts";
import { openCheckpointTensors } from "./checkpoint-tensors.ts";

const directories: string[] = [];
function newDirectory(): string {
  const path = mkdtempSync(join(tmpdir(), "hadal-atomic-"));
  directories.push(path);
  return path;
}
after(() => {
  for (const path of directories) rmSync(path, { recursive: true });
});

test("a file is replaced as a whole and leaves no temporary", () => {
  const directory = newDirectory();
  const path = join(directory, "config.json");
  writeFileAtomically(path, "first");
  writeFileAtomically(path, "größer");
  assert.equal(readFileSync(path, "utf8"), "größer");
  assert.deepEqual(readdirSync(directory), ["config.json"]);
});

test("missing directories are made, and where none can be made it fails at once", () => {
  const path = join(newDirectory(), "a", "b", "c");
  makeDirectories(path);
  makeDirectories(path);
  assert.ok(existsSync(path));
  writeFileAtomically(join(path, "file"), "");
  assert.throws(() => makeDirectories(join(path, "file", "below")), /EEXIST/);
  if (process.platform === "linux") {
    assert.throws(() => makeDirectories("/proc/hadal-test/below"), /ENOENT/);
  }
});

test("a file that cannot be written is reported with its path", () => {
  const path = join(newDirectory(), "none", "config.json");
  assert.throws(() => writeFileAtomically(path, "text"), {
    code: "checkpoint.writeFailed",
    message: /none.config\.json could not be written: there is no such file or folder/,
  });
});

test("a directory is replaced as a whole, and stays as it was when its writer throws", () => {
  const directory = newDirectory();
  const path = join(directory, "runs", "step-1");
  const write = (content: string): void =>
    replaceDirectory(path, (temporary) => {
      mkdirSync(join(temporary, "sub"));
      writeFileSync(join(temporary, "sub", content), content);
    });
  write("first");
  write("second");
  assert.throws(
    () =>
      replaceDirectory(path, () => {
        throw new RangeError("no data");
      }),
    /no data/,
  );
  assert.deepEqual(readdirSync(join(path, "sub")), ["second"]);
  assert.deepEqual(readdirSync(join(directory, "runs")), ["step-1"]);
});

test("stale temporaries go, a half-replaced directory comes back, the living keep theirs", () => {
  const directory = newDirectory();
  // No process has this id: it is above every system's limit.
  const dead = 2 ** 30 + 1;
  const living = process.ppid;
  for (const name of [`a.tmp-${dead}`, `a.old-${dead}`, "b", `b.old-${dead}`, `c.tmp-${living}`]) {
    mkdirSync(join(directory, name));
    writeFileSync(join(directory, name, "content"), name);
  }
  writeFileSync(join(directory, `d.tmp-${process.pid}`), "of an earlier process with our id");
  writeFileSync(join(directory, "e.tmp"), "not ours");
  assert.deepEqual(removeStaleTemporaries(directory).sort(), [
    `a.old-${dead}`,
    `a.tmp-${dead}`,
    `b.old-${dead}`,
    `d.tmp-${process.pid}`,
  ]);
  assert.deepEqual(readdirSync(directory).sort(), ["a", "b", `c.tmp-${living}`, "e.tmp"]);
  assert.equal(readFileSync(join(directory, "a", "content"), "utf8"), `a.old-${dead}`);
  assert.equal(readFileSync(join(directory, "b", "content"), "utf8"), "b");
});

const ATOMIC = siblingModule("./atomic", import.meta.url);
const CHECKPOINT_TENSORS = siblingModule("./checkpoint-tensors", import.meta.url);

/**
 * A program that writes versions `first`, `first + 1`, … of a sharded checkpoint to one place and
 * kills itself before its n-th change of the file system, in the middle of a write if that is one.
 */
const WRITER = `
  import fs from "node:fs";
  import { syncBuiltinESMExports } from "node:module";
  const [directory, changesAllowed, first, last] = process.argv.slice(1);
  let changesLeft = Number(changesAllowed);
  // Not fsync and not opening to read: what a kill leaves is the same before and after them.
  for (const name of ["openSync", "writeSync", "renameSync", "mkdirSync", "rmSync"]) {
    const original = fs[name];
    fs[name] = (...args) => {
      if (!(name === "openSync" && args[1] === "r") && changesLeft-- === 0) {
        if (name === "writeSync") original(args[0], args[1], args[2], args[3] >> 1);
        process.kill(process.pid, "SIGKILL");
      }
      return original(...args);
    };
  }
  syncBuiltinESMExports();
  const { replaceDirectory } = await import("${ATOMIC}");
  const { writeCheckpointTensors } = await import("${CHECKPOINT_TENSORS}");
  process.stdout.write("ready");
  for (let version = Number(first); version <= Number(last); version++) {
    const data = () => new Uint8Array(1000).fill(version);
    const source = (name) => ({ name, dtype: "U8", shape: [1000], data });
    replaceDirectory(directory + "/latest", (temporary) =>
      writeCheckpointTensors(temporary, [source("a"), source("b")], 1000));
  }
`;

interface WriterRun {
  readonly directory: string;
  readonly changesAllowed: number;
  readonly versions: readonly [first: number, last: number];
  /** Kill it this many milliseconds after it said that it is ready. */
  readonly killAfterMs?: number;
}

/** Run the writer to its end; says whether it was killed. */
function runWriter(run: WriterRun): Promise<boolean> {
  const args = [run.directory, run.changesAllowed, ...run.versions].map(String);
  const child = spawn(process.execPath, ["--input-type=module", "-e", WRITER, "--", ...args], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  child.stdout.on("data", () => {
    if (run.killAfterMs !== undefined) setTimeout(() => child.kill("SIGKILL"), run.killAfterMs);
  });
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code, signal) => {
      if (signal === "SIGKILL" || code === 0) resolve(signal === "SIGKILL");
      else reject(new Error(`the writer ended with code ${code}, signal ${signal}`));
    });
  });
}

/** The version of a checkpoint, all of which must be of one version. */
function loadVersion(directory: string): number {
  using tensors = openCheckpointTensors(join(directory, "latest"));
  const bytes = [...tensors.read("a"), ...tensors.read("b")];
  assert.equal(bytes.length, 2000);
  assert.ok(bytes.every((byte) => byte === bytes[0]));
  return bytes[0]!;
}

/**
 * What a killed writer may leave: nothing or a whole version; after cleaning, always a whole one.
 */
function checkAfterKill(
  directory: string,
  versions: readonly [number, number],
  where: string,
): void {
  const within = (version: number): boolean => version >= versions[0] && version <= versions[1];
  if (existsSync(join(directory, "latest"))) assert.ok(within(loadVersion(directory)), where);
  removeStaleTemporaries(directory);
  assert.deepEqual(readdirSync(directory), ["latest"], where);
  assert.ok(within(loadVersion(directory)), where);
}

test("a writer killed before any of its changes leaves the old or the new checkpoint", async () => {
  const pristine = newDirectory();
  assert.equal(
    await runWriter({ directory: pristine, changesAllowed: 1e9, versions: [1, 1] }),
    false,
  );
  let numKills = 0;
  const seen = new Set<number>();
  const killAt = async (changesAllowed: number): Promise<boolean> => {
    const directory = newDirectory();
    replaceDirectory(join(directory, "latest"), (temporary) => {
      for (const name of readdirSync(join(pristine, "latest"))) {
        writeFileSync(join(temporary, name), readFileSync(join(pristine, "latest", name)));
      }
    });
    const killed = await runWriter({ directory, changesAllowed, versions: [2, 2] });
    if (killed) numKills++;
    checkAfterKill(directory, [1, 2], `killed before change ${changesAllowed}`);
    seen.add(loadVersion(directory));
    return killed;
  };
  // Two at a time, until a writer lives to its end.
  for (let change = 0; ; change += 2) {
    const killed = await Promise.all([killAt(change), killAt(change + 1)]);
    if (!killed[1]) break;
  }
  assert.ok(numKills >= 15, `${numKills} kills: every change of three files and a directory`);
  assert.deepEqual([...seen].sort(), [1, 2]);
});

test("a writer killed at random instants always leaves a loadable checkpoint", async () => {
  const seed = 1;
  const random = new Random(seed);
  const directory = newDirectory();
  assert.equal(await runWriter({ directory, changesAllowed: 1e9, versions: [1, 1] }), false);
  for (let i = 0; i < 5; i++) {
    const versions = [1, 250] as const;
    const killAfterMs = random.below(40);
    await runWriter({ directory, changesAllowed: 1e9, versions, killAfterMs });
    checkAfterKill(directory, versions, `seed ${seed}, kill ${i} after ${killAfterMs} ms`);
  }
});
