/**
 * @file The tensors of a checkpoint directory, in one safetensors file or in shards with an index.
 *
 *     model.safetensors                          below the shard limit
 *     model-00001-of-00003.safetensors, …        above it, and
 *     model.safetensors.index.json               {"metadata": {"total_size": bytes},
 *                                                 "weight_map": {NAME: FILE, …}}
 *
 * The index is checked against the files: every tensor it names is in the shard it names, every
 * tensor in a shard is named, none is in two shards. A shard is a plain file name in the directory,
 * so no index leads out of it. A directory with both layouts is refused, for programs differ in
 * which one they would read. `total_size` is written for others and not believed.
 *
 * Writing into a live directory is safe for each file, not for the set: write a whole checkpoint
 * through `replaceDirectory`.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { assert, OperationalError } from "../base/errors.ts";
import { writeFileAtomically } from "./atomic.ts";
import { decodeUtf8, JsonScanner } from "./json-scanner.ts";
import { ReadableFile } from "./readable-file.ts";
import {
  openSafetensors,
  type SafetensorsFile,
  sourceBytes,
  tensorMissing,
  writeSafetensors,
} from "./safetensors.ts";
import { HEADER_BYTES_MAX } from "./safetensors-header.ts";
import type { TensorInfo, TensorReader, TensorSource } from "./tensors.ts";

export const SINGLE_FILE = "model.safetensors";
export const INDEX_FILE = "model.safetensors.index.json";

/** The usual size of a shard. */
export const SHARD_BYTES_MAX = 5_000_000_000;

/** A plain file name: no separators of any system, no leading dot. */
const SHARD_NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$/;

/** Open the tensors of a directory. */
export function openCheckpointTensors(directory: string): TensorReader {
  const hasSingle = existsSync(join(directory, SINGLE_FILE));
  const hasIndex = existsSync(join(directory, INDEX_FILE));
  if (hasSingle && hasIndex) {
    const message = `${directory} has both ${SINGLE_FILE} and ${INDEX_FILE}; remove one`;
    throw new OperationalError("checkpoint.invalid", message, { directory });
  }
  if (hasSingle) return openSafetensors(join(directory, SINGLE_FILE));
  if (hasIndex) return new ShardedTensors(directory);
  const message = `${directory} has neither ${SINGLE_FILE} nor ${INDEX_FILE}`;
  throw new OperationalError("checkpoint.missing", message, { directory });
}

class ShardedTensors implements TensorReader {
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #directory: string;
  readonly #shardOf: ReadonlyMap<string, string>;
  readonly #shards: ReadonlyMap<string, SafetensorsFile>;

  constructor(directory: string) {
    this.#directory = directory;
    this.#shardOf = readIndex(join(directory, INDEX_FILE));
    const shards = new Map<string, SafetensorsFile>();
    this.#shards = shards;
    try {
      for (const name of new Set(this.#shardOf.values())) {
        shards.set(name, openSafetensors(join(directory, name)));
      }
      this.tensors = this.#checkedTensors();
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** The tensors of all shards, after checking that index and shards agree in both directions. */
  #checkedTensors(): Map<string, TensorInfo> {
    const invalid = (problem: string): OperationalError =>
      new OperationalError(
        "checkpoint.invalid",
        `${join(this.#directory, INDEX_FILE)}: ${problem}`,
      );
    const tensors = new Map<string, TensorInfo>();
    for (const [shard, file] of this.#shards) {
      for (const tensor of file.tensors.values()) {
        const subject = `tensor ${JSON.stringify(tensor.name)}`;
        const expected = this.#shardOf.get(tensor.name);
        if (expected === undefined) throw invalid(`${subject} of ${shard} is not in the index`);
        if (expected !== shard)
          throw invalid(`${subject} is in ${shard}, the index says ${expected}`);
        tensors.set(tensor.name, tensor);
      }
    }
    for (const [name, shard] of this.#shardOf) {
      if (!tensors.has(name)) throw invalid(`tensor ${JSON.stringify(name)} is not in ${shard}`);
    }
    return tensors;
  }

  #shardWith(name: string): SafetensorsFile {
    const shard = this.#shards.get(this.#shardOf.get(name) ?? "");
    if (shard === undefined) throw tensorMissing(name, this.#directory);
    return shard;
  }

  fileOf(name: string): string {
    return this.#shardWith(name).path;
  }

  read(name: string): Uint8Array<ArrayBuffer> {
    return this.#shardWith(name).read(name);
  }

  readInto(name: string, target: Uint8Array): void {
    this.#shardWith(name).readInto(name, target);
  }

  [Symbol.dispose](): void {
    for (const shard of this.#shards.values()) shard[Symbol.dispose]();
  }
}

/** Which shard each tensor is in, as the index says. */
function readIndex(path: string): Map<string, string> {
  using file = new ReadableFile(path);
  if (file.numBytes > HEADER_BYTES_MAX) {
    const message = `${path} has ${file.numBytes} bytes; at most ${HEADER_BYTES_MAX} are allowed`;
    throw new OperationalError("checkpoint.invalid", message, { path });
  }
  const bytes = new Uint8Array(file.numBytes);
  file.readInto(bytes, 0);
  const scanner = new JsonScanner(decodeUtf8(bytes, path), path);
  let shardOf: Map<string, string> | undefined;
  scanner.object((key) => {
    if (key !== "weight_map") return scanner.skipValue();
    const map = new Map<string, string>();
    scanner.object((name) => {
      const shard = scanner.string();
      if (!SHARD_NAME.test(shard)) {
        scanner.fail(`shard ${JSON.stringify(shard)} is not a plain .safetensors file name`);
      }
      map.set(name, shard);
    });
    shardOf = map;
  });
  scanner.end();
  return shardOf ?? scanner.fail("no weight_map");
}

/**
 * Cut a list of tensors, in its order, into shards of at most `shardBytesMax` where one tensor
 * allows.
 */
function assignShards(sources: readonly TensorSource[], shardBytesMax: number): TensorSource[][] {
  const shards: TensorSource[][] = [[]];
  let shardBytes = 0;
  for (const source of sources) {
    const bytes = sourceBytes(source);
    if (shardBytes > 0 && shardBytes + bytes > shardBytesMax) {
      shards.push([]);
      shardBytes = 0;
    }
    shards.at(-1)!.push(source);
    shardBytes += bytes;
  }
  return shards;
}

/**
 * Write the tensors of a checkpoint into a directory, sharded in the given order when they exceed
 * the limit. A single tensor above the limit has a shard of its own.
 */
export function writeCheckpointTensors(
  directory: string,
  sources: readonly TensorSource[],
  shardBytesMax: number = SHARD_BYTES_MAX,
): void {
  assert(shardBytesMax > 0, `shardBytesMax (${shardBytesMax}) must be > 0`);
  const names = new Set(sources.map((source) => source.name));
  assert(names.size === sources.length, "a tensor occurs twice in the checkpoint");
  const shards = assignShards(sources, shardBytesMax);
  if (shards.length === 1) {
    writeSafetensors(join(directory, SINGLE_FILE), sources);
    return;
  }
  const weightMap = new Map<string, string>();
  const total = String(shards.length).padStart(5, "0");
  for (const [i, shard] of shards.entries()) {
    const file = `model-${String(i + 1).padStart(5, "0")}-of-${total}.safetensors`;
    writeSafetensors(join(directory, file), shard);
    for (const { name } of shard) weightMap.set(name, file);
  }
  const totalBytes = sources.reduce((sum, source) => sum + sourceBytes(source), 0);
  // The index comes last: without it the shards are no checkpoint.
  writeFileAtomically(join(directory, INDEX_FILE), encodeIndex(weightMap, totalBytes));
}

function encodeIndex(weightMap: ReadonlyMap<string, string>, totalBytes: number): string {
  const entries = [...weightMap].sort(([a], [b]) => (a < b ? -1 : 1));
  const lines = entries.map(([name, file]) => `    ${JSON.stringify(name)}: "${file}"`);
  return (
    `{\n  "metadata": {\n    "total_size": ${totalBytes}\n  },\n` +
    `  "weight_map": {\n${lines.join(",\n")}\n  }\n}\n`
  );
}
