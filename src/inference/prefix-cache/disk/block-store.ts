/**
 * @file Latent blocks in a folder: one file a block, bounded in bytes, shared by processes.
 *
 *     FOLDER/MODEL/NAME            a block (block-file.ts); MODEL is the model hash's first half
 *     FOLDER/MODEL/NAME.PID-N.tmp  a block that is being written
 *
 * What is in the folder is the truth: a block is looked for by opening its file, so what another
 * process stored is found and what it removed is missed. The index (names, bytes, order of use) is
 * built from a scan that reads no file, only serves to keep within the bound, and is built anew
 * whenever an eighth of the bound has been written since. So P processes may exceed it by P/8 for a
 * while. All models of the folder share it; the blocks unused for the longest time go first.
 *
 * A file is written beside and renamed, without fsync: after a power cut it may be torn, and the
 * checksum tells. What is torn, foreign or altered is removed and counted, never served. When a
 * write fails (full, read-only, no permission) the block is dropped, the reason kept, and the
 * following 1, 3, 7, … up to 1023 blocks are not tried.
 *
 * Prompts can be read from the files: folder and files are for their owner alone. Blocking calls
 * throughout; `disk-tier.ts` runs a store in a thread of its own.
 */
import { join } from "node:path";
import { assert } from "../../../base/errors.ts";
import { floorDiv } from "../../../base/integers.ts";
import {
  type BlockKey,
  type BlockKind,
  blockKeys,
  checksumOf,
  hashText,
  OVERHEAD_BYTES,
  readPayload,
} from "./block-file.ts";
import { type BlockFileSystem, isSystemError, SYSTEM_FILES } from "./file-system.ts";

/** A file takes at least this much of a disk. */
const FILE_BYTES_LEAST = 4096;
/** No write takes this long: a temporary file that is older was left behind. */
const TEMPORARY_MS_MAX = 600_000;
const SKIPPED_WRITES_MAX = 1023;

const MODEL_NAME = /^[0-9a-f]{32}$/;
const BLOCK_NAME = /^[0-9a-f]{32}$/;
const TEMPORARY_NAME = /^[0-9a-f]{32}\.(\d{1,10})-[0-9a-f]{8}\.tmp$/;

export interface StoreSettings {
  readonly folder: string;
  /** Everything that decides the latents' bits: weights, float type, layout. */
  readonly modelIdentity: string;
  readonly payloadBytes: number;
  /** For all files of the folder together. */
  readonly bytesMax: number;
}

/** What a store has done since it was opened, and what it holds. */
export interface StoreCounts {
  readonly files: number;
  readonly bytes: number;
  readonly loaded: number;
  readonly written: number;
  readonly evicted: number;
  /** Torn, foreign or altered files. */
  readonly corrupt: number;
  readonly failedWrites: number;
  /** Why the last write failed; null once one succeeded. */
  readonly problem: string | null;
}

export class BlockStore {
  readonly #files: BlockFileSystem;
  readonly #folder: string;
  readonly #model: string;
  readonly #kind: BlockKind;
  readonly #bytesMax: number;
  /** By `MODEL/NAME`; the least recently used first. */
  readonly #index = new Map<string, number>();
  readonly #counters = { loaded: 0, written: 0, evicted: 0, corrupt: 0, failedWrites: 0 };
  #bytes = 0;
  #bytesSinceScan = 0;
  #problem: string | null = null;
  #failuresInRow = 0;
  #writesToSkip = 0;

  constructor(settings: StoreSettings, files: BlockFileSystem = SYSTEM_FILES) {
    const { payloadBytes, bytesMax } = settings;
    assert(Number.isSafeInteger(payloadBytes) && payloadBytes > 0, "a payload has no bytes");
    assert(Number.isSafeInteger(bytesMax) && bytesMax >= 0, `bound of ${bytesMax} bytes`);
    this.#files = files;
    this.#folder = settings.folder;
    this.#kind = { modelHash: hashText(settings.modelIdentity), payloadBytes };
    this.#model = Buffer.from(this.#kind.modelHash.subarray(0, 16)).toString("hex");
    this.#bytesMax = bytesMax;
    this.#scan();
    this.#evict();
  }

  get counts(): StoreCounts {
    const { size } = this.#index;
    return { ...this.#counters, files: size, bytes: this.#bytes, problem: this.#problem };
  }

  /** The keys of the whole blocks of `tokens`. */
  keys(salt: string, tokens: Int32Array): Generator<BlockKey, void> {
    return blockKeys(this.#kind, salt, tokens);
  }

  /** Whether there is a file for a block; it may turn out to be corrupt. */
  has(key: BlockKey): boolean {
    const facts = this.#files.facts(this.#path(key));
    return facts !== null && facts.bytes === this.#fileBytes;
  }

  /** The payload of a block, or null. */
  load(key: BlockKey): Uint8Array<ArrayBuffer> | null {
    const path = this.#path(key);
    const file = this.#files.read(path, this.#fileBytes);
    const payload = file === null ? null : readPayload(key, file);
    if (payload === null) {
      if (file !== null || this.#files.facts(path) !== null) this.#removeCorrupt(key);
      return null;
    }
    this.#counters.loaded++;
    this.#files.touch(path);
    this.#list(`${this.#model}/${key.name}`, this.#fileBytes);
    return payload as Uint8Array<ArrayBuffer>;
  }

  /** Store a block, unless it is there or writes are failing. Says whether it is there now. */
  store(key: BlockKey, payload: Uint8Array): boolean {
    assert(payload.length === this.#kind.payloadBytes, `payload of ${payload.length} bytes`);
    if (this.#fileBytes > this.#bytesMax) return false;
    if (this.has(key)) {
      this.#list(`${this.#model}/${key.name}`, this.#fileBytes);
      return true;
    }
    if (this.#writesToSkip > 0) {
      this.#writesToSkip--;
      return false;
    }
    if (!this.#write(key, payload)) return false;
    this.#counters.written++;
    this.#list(`${this.#model}/${key.name}`, this.#fileBytes);
    this.#bytesSinceScan += this.#fileBytes;
    if (this.#bytesSinceScan > floorDiv(this.#bytesMax, 8)) this.#scan();
    this.#evict();
    return true;
  }

  get #fileBytes(): number {
    return OVERHEAD_BYTES + this.#kind.payloadBytes;
  }

  #path(key: BlockKey): string {
    return join(this.#folder, this.#model, key.name);
  }

  #write(key: BlockKey, payload: Uint8Array): boolean {
    const path = this.#path(key);
    const temporary = temporaryPath(path);
    try {
      this.#files.makeDirectory(join(this.#folder, this.#model));
      this.#files.write(temporary, [key.header, payload, checksumOf(key.header, payload)]);
      this.#files.rename(temporary, path);
      // Times of use and of writing come from one clock: the file system's may lag behind.
      this.#files.touch(path);
      this.#problem = null;
      this.#failuresInRow = 0;
      return true;
    } catch (error) {
      if (!isSystemError(error)) throw error;
      this.#remove(temporary);
      this.#counters.failedWrites++;
      this.#failuresInRow++;
      this.#problem = `${this.#folder} could not be written: ${error.message}`;
      this.#writesToSkip = Math.min(2 ** this.#failuresInRow - 1, SKIPPED_WRITES_MAX);
      return false;
    }
  }

  /** Build the index from names and facts. */
  #scan(): void {
    const found: { place: string; bytes: number; modifiedMs: number }[] = [];
    const ranks = new Map([...this.#index.keys()].map((place, rank) => [place, rank]));
    const rankOf = (place: string): number => ranks.get(place) ?? -1;
    for (const model of this.#files.list(this.#folder)) {
      if (!MODEL_NAME.test(model)) continue;
      for (const name of this.#files.list(join(this.#folder, model))) {
        const path = join(this.#folder, model, name);
        const temporary = TEMPORARY_NAME.exec(name);
        if (temporary !== null) this.#removeStale(path, Number(temporary[1]));
        if (!BLOCK_NAME.test(name)) continue;
        const facts = this.#files.facts(path);
        if (facts !== null) found.push({ place: `${model}/${name}`, ...facts });
      }
    }
    // Within a millisecond, what is known of the order stays.
    found.sort((a, b) => a.modifiedMs - b.modifiedMs || rankOf(a.place) - rankOf(b.place));
    this.#index.clear();
    this.#bytes = 0;
    this.#bytesSinceScan = 0;
    for (const { place, bytes } of found) this.#list(place, bytes);
  }

  #removeStale(path: string, pid: number): void {
    const facts = this.#files.facts(path);
    if (facts === null) return;
    if (Date.now() - facts.modifiedMs > TEMPORARY_MS_MAX || !isAlive(pid)) this.#remove(path);
  }

  /** Note a file as the one used last. */
  #list(place: string, bytes: number): void {
    this.#forget(place);
    const counted = Math.max(bytes, FILE_BYTES_LEAST);
    this.#index.set(place, counted);
    this.#bytes += counted;
  }

  #forget(place: string): void {
    this.#bytes -= this.#index.get(place) ?? 0;
    this.#index.delete(place);
  }

  #evict(): void {
    for (const place of this.#index.keys()) {
      if (this.#bytes <= this.#bytesMax) return;
      this.#remove(join(this.#folder, place));
      this.#forget(place);
      this.#counters.evicted++;
    }
  }

  #removeCorrupt(key: BlockKey): void {
    this.#counters.corrupt++;
    this.#remove(this.#path(key));
    this.#forget(`${this.#model}/${key.name}`);
  }

  /** A file that cannot be removed (read-only folder, in use elsewhere) stays. */
  #remove(path: string): void {
    try {
      this.#files.remove(path);
    } catch (error) {
      if (!isSystemError(error)) throw error;
    }
  }
}

/** A name of its own for every writer, also for two of one process. */
function temporaryPath(path: string): string {
  const [word] = crypto.getRandomValues(new Uint32Array(1));
  return `${path}.${process.pid}-${word!.toString(16).padStart(8, "0")}.tmp`;
}

/** Whether a process of this machine has the id. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it lives and is someone else's.
    return isSystemError(error) && error.code === "EPERM";
  }
}
