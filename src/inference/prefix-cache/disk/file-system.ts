/**
 * @file The few calls of the file system that a block store makes, so that a test can make each of
 * them fail.
 *
 * Reading follows no link at the file's own name, opens nothing but regular files and reads only a
 * file of exactly the length that is expected.
 */
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  utimesSync,
  writeSync,
} from "node:fs";

export interface FileFacts {
  readonly bytes: number;
  /** Whole milliseconds since 1970. */
  readonly modifiedMs: number;
}

export interface BlockFileSystem {
  /** Create a directory, for its owner alone, and those above it. */
  makeDirectory(path: string): void;
  /** Names in a directory; none when there is no directory. */
  list(path: string): string[];
  /** Facts of a regular file; null for anything else. */
  facts(path: string): FileFacts | null;
  /** The bytes of a regular file of that length; null for anything else. */
  read(path: string, numBytes: number): Uint8Array<ArrayBuffer> | null;
  /** Create a new file, for its owner alone, from parts. */
  write(path: string, parts: readonly Uint8Array[]): void;
  rename(from: string, to: string): void;
  /** Remove a file, if it is there. */
  remove(path: string): void;
  /** Set a file's time of modification to now. */
  touch(path: string): void;
}

export const SYSTEM_FILES: BlockFileSystem = {
  makeDirectory: (path) => void mkdirSync(path, { recursive: true, mode: 0o700 }),
  list: (path) => orNull(() => readdirSync(path)) ?? [],
  facts: (path) => {
    const stats = orNull(() => lstatSync(path));
    return stats?.isFile() ? { bytes: stats.size, modifiedMs: Math.floor(stats.mtimeMs) } : null;
  },
  read: readWhole,
  write: (path, parts) => {
    const descriptor = openSync(path, "wx", 0o600);
    try {
      for (const part of parts) writeFully(descriptor, part);
    } finally {
      closeSync(descriptor);
    }
  },
  rename: renameSync,
  remove: (path) => rmSync(path, { force: true }),
  touch: (path) => {
    const now = new Date();
    orNull(() => utimesSync(path, now, now));
  },
};

function readWhole(path: string, numBytes: number): Uint8Array<ArrayBuffer> | null {
  // Without O_NONBLOCK a pipe that stands under the name would hold the thread for ever. Windows
  // has neither of the two.
  const flags = constants.O_RDONLY | (constants.O_NOFOLLOW ?? 0) | (constants.O_NONBLOCK ?? 0);
  const descriptor = orNull(() => openSync(path, flags));
  if (descriptor === null) return null;
  try {
    const stats = fstatSync(descriptor);
    if (!stats.isFile() || stats.size !== numBytes) return null;
    const bytes = new Uint8Array(numBytes);
    for (let done = 0; done < numBytes; ) {
      const count = readSync(descriptor, bytes, done, numBytes - done, done);
      if (count === 0) return null;
      done += count;
    }
    return bytes;
  } catch (error) {
    if (isSystemError(error)) return null;
    throw error;
  } finally {
    closeSync(descriptor);
  }
}

function writeFully(descriptor: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) {
    done += writeSync(descriptor, bytes, done, bytes.length - done);
  }
}

export function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && "code" in error && "syscall" in error;
}

/** The result, or null when the file system refuses. */
function orNull<T>(action: () => T): T | null {
  try {
    return action();
  } catch (error) {
    if (isSystemError(error)) return null;
    throw error;
  }
}
