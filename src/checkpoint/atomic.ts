/**
 * @file Files and directories that are either whole or not there, whatever instant the process is
 * killed at.
 *
 * Everything is written beside its place, as `NAME.tmp-PID`, brought to the disk by fsync, and then
 * renamed. A directory that exists already is first renamed to `NAME.old-PID`; killed between the
 * two renames, the process leaves no NAME, and `removeStaleTemporaries` puts the old one back.
 *
 * Not a lock: two processes that write the same name at once race for the last rename.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { OperationalError, reasonOf } from "../base/errors.ts";

/** A system call writes less than 2 GiB at once. */
const WRITE_BYTES_MAX = 2 ** 30;

/** Where the content of a file goes, in order. */
export interface FileSink {
  write(bytes: Uint8Array): void;
}

/** Turn an error of the file system into one that says what could not be written. */
function writing<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (!(error instanceof Error) || !("syscall" in error)) throw error;
    const reason = reasonOf(error);
    const message = `${path} could not be written: ${reason}; see to space and permissions`;
    throw new OperationalError("checkpoint.writeFailed", message, { path }, error);
  }
}

/**
 * Make a directory and those above it that are missing. Not by `mkdirSync`'s own `recursive`: where
 * the system answers "no such file" for a parent that exists, as Linux does below /proc, Node 24
 * tries for ever.
 */
export function makeDirectories(path: string): void {
  if (existsSync(path) && statSync(path).isDirectory()) return;
  const parent = dirname(path);
  if (parent !== path) makeDirectories(parent);
  try {
    mkdirSync(path);
  } catch (error) {
    // Another process may have been faster.
    if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) throw error;
  }
}

/** Make renames and creations in a directory durable. */
function syncDirectory(path: string): void {
  // Windows neither offers nor needs it: a directory cannot be opened there.
  if (process.platform === "win32") return;
  syncPath(path);
}

function syncPath(path: string): void {
  const descriptor = openSync(path, "r");
  try {
    fsyncSync(descriptor);
  } finally {
    closeSync(descriptor);
  }
}

function writeFully(descriptor: number, bytes: Uint8Array): void {
  let done = 0;
  while (done < bytes.length) {
    const count = Math.min(bytes.length - done, WRITE_BYTES_MAX);
    done += writeSync(descriptor, bytes, done, count);
  }
}

/**
 * Write a file piece by piece; it appears under its name, replacing any other, when all is written.
 */
export function streamFileAtomically(path: string, produce: (sink: FileSink) => void): void {
  const temporary = `${path}.tmp-${process.pid}`;
  writing(path, () => {
    try {
      const descriptor = openSync(temporary, "w");
      try {
        produce({ write: (bytes) => writeFully(descriptor, bytes) });
        fsyncSync(descriptor);
      } finally {
        closeSync(descriptor);
      }
      renameSync(temporary, path);
      syncDirectory(dirname(path));
    } catch (error) {
      rmSync(temporary, { force: true });
      throw error;
    }
  });
}

/** Write a whole file; text is UTF-8. */
export function writeFileAtomically(path: string, content: string | Uint8Array): void {
  const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
  streamFileAtomically(path, (sink) => sink.write(bytes));
}

/** Bring every file and directory below `path`, and `path` itself, to the disk. */
function syncTree(path: string): void {
  for (const entry of readdirSync(path, { withFileTypes: true })) {
    const child = join(path, entry.name);
    if (entry.isDirectory()) syncTree(child);
    else syncPath(child);
  }
  syncDirectory(path);
}

/**
 * Write a directory: `produce` fills a temporary one, which then takes the name, replacing any
 * other. If `produce` throws, nothing has changed.
 */
export function replaceDirectory(path: string, produce: (temporary: string) => void): void {
  const temporary = `${path}.tmp-${process.pid}`;
  const old = `${path}.old-${process.pid}`;
  writing(path, () => {
    rmSync(temporary, { recursive: true, force: true });
    makeDirectories(temporary);
    try {
      produce(temporary);
      syncTree(temporary);
      if (existsSync(path)) {
        rmSync(old, { recursive: true, force: true });
        renameSync(path, old);
      }
      renameSync(temporary, path);
    } catch (error) {
      if (existsSync(old) && !existsSync(path)) renameSync(old, path);
      rmSync(temporary, { recursive: true, force: true });
      throw error;
    }
    syncDirectory(dirname(path));
    rmSync(old, { recursive: true, force: true });
  });
}

/** Whether another process of this machine has the id. */
function isAnotherProcess(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives and is someone else's.
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

/**
 * Remove what killed processes left in a directory, and put back a directory that was being
 * replaced. Call it before this process writes there: its own process id counts as stale, because
 * in a container every run may have the same one. What a living process writes is left alone.
 * Returns the names it removed or renamed.
 */
export function removeStaleTemporaries(directory: string): string[] {
  const stale: string[] = [];
  for (const name of readdirSync(directory)) {
    const match = /^(.+)\.(tmp|old)-(\d+)$/.exec(name);
    if (match === null || isAnotherProcess(Number(match[3]))) continue;
    const path = join(directory, name);
    const place = join(directory, basename(match[1]!));
    writing(path, () => {
      if (match[2] === "old" && !existsSync(place)) renameSync(path, place);
      else rmSync(path, { recursive: true, force: true });
    });
    stale.push(name);
  }
  if (stale.length > 0) syncDirectory(directory);
  return stale;
}
