/**
 * @file A file read at positions, never as a whole: any size, one descriptor, closed by `using`.
 *
 * Opens regular files only (a pipe or a device could block for ever). A read beyond the end, also
 * of a file that shrank since, is `checkpoint.truncated`.
 */
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { OperationalError } from "../base/errors.ts";

/** A system call reads less than 2 GiB at once. */
const READ_BYTES_MAX = 2 ** 30;

export class ReadableFile implements Disposable {
  readonly path: string;
  readonly numBytes: number;
  readonly #descriptor: number;

  constructor(path: string) {
    const stats = statSync(path, { throwIfNoEntry: false });
    if (stats === undefined) {
      const message = `${path} does not exist; name a file that was written completely`;
      throw new OperationalError("checkpoint.missing", message, { path });
    }
    if (!stats.isFile()) {
      throw new OperationalError("checkpoint.invalid", `${path} is not a regular file`, { path });
    }
    this.path = path;
    this.numBytes = stats.size;
    try {
      this.#descriptor = openSync(path, "r");
    } catch (error) {
      const message = `${path} could not be opened: ${error}; see to its permissions`;
      throw new OperationalError("checkpoint.unreadable", message, { path }, error);
    }
  }

  /** Fill `target` from the bytes at `position`. */
  readInto(target: Uint8Array, position: number): void {
    let done = 0;
    while (done < target.length) {
      const wanted = Math.min(target.length - done, READ_BYTES_MAX);
      const count = readSync(this.#descriptor, target, done, wanted, position + done);
      if (count === 0) {
        const end = position + target.length;
        const message = `${this.path} ends at ${position + done}, expected ${end}; copy it again`;
        throw new OperationalError("checkpoint.truncated", message, { path: this.path });
      }
      done += count;
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.#descriptor);
  }
}
