/** @file Tests of checkpoint directories: one file or shards, and an index that lies. */
import assert from "node:assert/strict";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, beforeEach, describe, test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import {
  INDEX_FILE,
  openCheckpointTensors,
  SINGLE_FILE,
  writeCheckpointTensors,
} from "./checkpoint-tensors.ts";
import { writeSafetensors } from "./safetensors.ts";
import type { TensorSource } from "./tensors.ts";

let directory = "";
const directories: string[] = [];
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "hadal-checkpoint-"));
  directories.push(directory);
});
after(() => {
  for (const path of directories) rmSync(path, { recursive: true });
});

function bytesSource(name: string, numBytes: number, fill: number = 1): TensorSource {
  return { name, dtype: "U8", shape: [numBytes], data: () => new Uint8Array(numBytes).fill(fill) };
}

function refusal(): string {
  try {
    openCheckpointTensors(directory)[Symbol.dispose]();
  } catch (error) {
    assert.ok(error instanceof OperationalError, `${error}`);
    return `${error.code}: ${error.message}`;
  }
  return "accepted";
}

test("tensors below the limit are one file without an index", () => {
  writeCheckpointTensors(directory, [bytesSource("a", 10), bytesSource("b", 20)], 30);
  assert.deepEqual(readdirSync(directory), [SINGLE_FILE]);
  using tensors = openCheckpointTensors(directory);
  assert.deepEqual(tensors.read("b"), new Uint8Array(20).fill(1));
});

test("above the limit they are cut in their order, a large one has a shard of its own", () => {
  const sources = [5, 5, 100, 5, 6].map((numBytes, i) => bytesSource(`t${i}`, numBytes));
  writeCheckpointTensors(directory, sources, 10);
  const shard = (i: number): string => `model-0000${i}-of-00004.safetensors`;
  assert.deepEqual(readdirSync(directory).sort(), [
    shard(1),
    shard(2),
    shard(3),
    shard(4),
    INDEX_FILE,
  ]);
  assert.deepEqual(JSON.parse(readFileSync(join(directory, INDEX_FILE), "utf8")), {
    metadata: { total_size: 121 },
    weight_map: { t0: shard(1), t1: shard(1), t2: shard(2), t3: shard(3), t4: shard(4) },
  });
});

test("random checkpoints come back from any number of shards", () => {
  for (let seed = 0; seed < 10; seed++) {
    const random = new Random(seed);
    const sources = Array.from({ length: 1 + random.below(12) }, (_, i) =>
      bytesSource(`layers.${i}.weight`, random.below(50), i),
    );
    const path = join(directory, `${seed}`);
    const limit = 1 + random.below(200);
    mkdirSync(path);
    writeCheckpointTensors(path, sources, limit);
    using tensors = openCheckpointTensors(path);
    assert.equal(tensors.tensors.size, sources.length, `seed ${seed}`);
    for (const source of sources) {
      const target = new Uint8Array(source.shape[0]!);
      tensors.readInto(source.name, target);
      assert.deepEqual(target, source.data(), `seed ${seed}, limit ${limit}, ${source.name}`);
    }
    assert.throws(() => tensors.read("none"), { code: "checkpoint.tensorMissing" });
  }
});

describe("an index that does not tell the truth is refused:", () => {
  const first = "model-00001-of-00002.safetensors";
  const second = "model-00002-of-00002.safetensors";
  const index = (weightMap: string): void =>
    writeFileSync(
      join(directory, INDEX_FILE),
      `{"metadata":{"x":[1.5e3,null]},"weight_map":${weightMap}}`,
    );
  beforeEach(() => {
    writeCheckpointTensors(directory, [bytesSource("a", 10), bytesSource("b", 10)], 10);
  });

  test("(the same index, written by hand, is accepted)", () => {
    index(`{"a":"${first}","b":"${second}"}`);
    assert.equal(refusal(), "accepted");
  });
  test("a shard that is missing", () => {
    rmSync(join(directory, second));
    assert.match(refusal(), /^checkpoint\.missing: .*00002/);
  });
  test("a shard that is short", () => {
    writeFileSync(join(directory, second), readFileSync(join(directory, second)).subarray(0, -1));
    assert.match(refusal(), /^checkpoint\.truncated: .*00002/);
  });
  for (const name of [
    "../model.safetensors",
    "..\\\\model.safetensors",
    "/etc/model.safetensors",
    "sub/model.safetensors",
    ".model.safetensors",
    "model.safetensors\\u0000.safetensors",
    "C:model.safetensors",
    "model.bin",
    "",
  ]) {
    test(`a shard named ${JSON.stringify(name)}`, () => {
      index(`{"a":"${first}","b":"${name}"}`);
      assert.match(refusal(), /^checkpoint\.invalid: .*not a plain \.safetensors file name/);
    });
  }
  test("a tensor that its shard does not have", () => {
    index(`{"a":"${first}","b":"${second}","c":"${second}"}`);
    assert.match(refusal(), /^checkpoint\.invalid: .*"c" is not in model-00002/);
  });
  test("a tensor that the index does not name", () => {
    writeSafetensors(join(directory, second), [bytesSource("b", 10), bytesSource("c", 1)]);
    assert.match(refusal(), /^checkpoint\.invalid: .*"c" of model-00002.* is not in the index/);
  });
  test("a tensor in two shards", () => {
    writeSafetensors(join(directory, second), [bytesSource("b", 10), bytesSource("a", 10)]);
    assert.match(
      refusal(),
      /^checkpoint\.invalid: .*"a" is in model-00002.*, the index says model-00001/,
    );
  });
  test("a tensor named twice", () => {
    index(`{"a":"${first}","b":"${second}","a":"${second}"}`);
    assert.match(refusal(), /^checkpoint\.invalid: .*"a" occurs twice/);
  });
  test("no weight_map", () => {
    writeFileSync(join(directory, INDEX_FILE), '{"metadata":{}}');
    assert.match(refusal(), /^checkpoint\.invalid: .*no weight_map/);
  });
  test("metadata nested 100,000 deep", () => {
    writeFileSync(join(directory, INDEX_FILE), `{"metadata":${"[".repeat(1e5)}`);
    assert.match(refusal(), /^checkpoint\.invalid: .*nesting deeper than 64/);
  });
  test("a number of a million digits that ends in a letter", () => {
    writeFileSync(join(directory, INDEX_FILE), `{"metadata":${"1".repeat(1e6)}x}`);
    assert.match(refusal(), /^checkpoint\.invalid: .*expected \}/);
  });
  test("both layouts at once", () => {
    copyFileSync(join(directory, first), join(directory, SINGLE_FILE));
    assert.match(refusal(), /^checkpoint\.invalid: .*has both/);
  });
  test("neither layout", () => {
    rmSync(join(directory, INDEX_FILE));
    assert.match(refusal(), /^checkpoint\.missing: .*neither/);
  });
});
