/**
 * @file A lock on a run folder, against two trainers in one run.
 *
 * The lock is a file that names its holder: process id, when that process started (process ids are
 * used again) and host. A holder that was killed leaves its file; the next trainer sees that no
 * such process lives and takes over. A lock from another host cannot be checked and is refused,
 * with the file's name, so that a person can decide.
 */
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { InvariantError, OperationalError } from "../../base/errors.ts";

const LOCK_FILE = "lock.json";

interface Holder {
  readonly pid: number;
  /** Clock ticks since boot at which the process started; "" where the system does not tell. */
  readonly started: string;
  readonly host: string;
}

/** Held until disposed of. */
export interface RunLock extends Disposable {}

/** Take the lock of `folder`, which exists. */
export function lockRun(folder: string): RunLock {
  const path = join(folder, LOCK_FILE);
  const mine = JSON.stringify({
    pid: process.pid,
    started: startOf(process.pid),
    host: hostname(),
  });
  // Each failed round has removed one stale lock or met a fresh one; a third round is never needed
  // in practice.
  for (let round = 0; round < 8; round++) {
    if (createExclusively(path, mine)) {
      return {
        [Symbol.dispose]: (): void => {
          if (readText(path) === mine) rmSync(path, { force: true });
        },
      };
    }
    const found = readText(path);
    if (found === undefined) continue;
    refuseLiving(path, found);
    takeAway(path, found);
  }
  throw new InvariantError(`the lock ${path} is taken and given back faster than it can be read`);
}

/** The lock appears with its content or not at all: a reader never sees half of it. */
function createExclusively(path: string, content: string): boolean {
  const beside = `${path}.tmp-${process.pid}`;
  try {
    writeFileSync(beside, content);
    linkSync(beside, path);
    return true;
  } catch (error) {
    if (isSystemError(error, "EEXIST")) return false;
    throw new OperationalError("run.lock", `${path} could not be written: ${String(error)}`);
  } finally {
    rmSync(beside, { force: true });
  }
}

function refuseLiving(path: string, content: string): void {
  const holder = parseHolder(content);
  // Something that is not a lock protects nobody.
  if (holder === undefined) return;
  const isElsewhere = holder.host !== hostname();
  if (!isElsewhere && !isAlive(holder)) return;
  const who = `process ${holder.pid}${isElsewhere ? ` on ${holder.host}` : ""}`;
  throw new OperationalError(
    "run.locked",
    `the run is being trained by ${who}; stop it first${
      isElsewhere ? `, or remove ${path} if it no longer runs` : ""
    }`,
    { path, ...holder },
  );
}

/** Remove a stale lock, and only that one: what was moved away is looked at again. */
function takeAway(path: string, stale: string): void {
  const aside = `${path}.stale-${process.pid}`;
  try {
    renameSync(path, aside);
  } catch (error) {
    if (isSystemError(error, "ENOENT")) return;
    throw error;
  }
  if (readText(aside) !== stale) {
    // Another trainer took over between our reading and our renaming: give its lock back.
    try {
      linkSync(aside, path);
    } catch (error) {
      if (!isSystemError(error, "EEXIST")) throw error;
    }
  }
  rmSync(aside, { force: true });
}

function parseHolder(content: string): Holder | undefined {
  try {
    const value = JSON.parse(content) as Partial<Holder> | null;
    if (typeof value?.pid !== "number" || typeof value.host !== "string") return undefined;
    return { pid: value.pid, started: String(value.started ?? ""), host: value.host };
  } catch {
    return undefined;
  }
}

function isAlive(holder: Holder): boolean {
  const started = startOf(holder.pid);
  if (started !== "" && holder.started !== "") return started === holder.started;
  try {
    process.kill(holder.pid, 0);
    return true;
  } catch (error) {
    return isSystemError(error, "EPERM");
  }
}

/**
 * Field 22 of /proc/PID/stat, counted after the command's closing parenthesis; "" where there is
 * none.
 */
function startOf(pid: number): string {
  const stat = readText(`/proc/${pid}/stat`);
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
}

function readText(path: string): string | undefined {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return undefined;
  }
}

function isSystemError(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
