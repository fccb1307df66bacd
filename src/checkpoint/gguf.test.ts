/**
 * @file Tests of the GGUF writer against the bytes of the format, and of the reader against bad
 * files.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import { encodeFloats } from "./float-codec.ts";
import { type GgufTensorSource, type GgufValue, writeGguf } from "./gguf.ts";
import { openGguf } from "./gguf-reader.ts";

const directory = mkdtempSync(join(tmpdir(), "hadal-gguf-"));
after(() => rmSync(directory, { recursive: true }));

/** Little-endian bytes: numbers as [width, value], text as such, byte arrays as such. */
function bytesOf(
  ...parts: (string | Uint8Array | readonly [width: 1 | 4 | 8, value: number])[]
): Buffer {
  return Buffer.concat(
    parts.map((part) => {
      if (typeof part === "string") return Buffer.from(part);
      if (part instanceof Uint8Array) return part;
      const bytes = Buffer.alloc(8);
      bytes.writeBigInt64LE(BigInt(part[1]));
      return bytes.subarray(0, part[0]);
    }),
  );
}

test("the bytes written are exactly these", () => {
  const path = join(directory, "exact.gguf");
  const metadata = new Map<string, GgufValue>([
    ["a", { type: "u32", value: 7 }],
    ["b", { type: "array", of: "string", values: ["x", "é"] }],
    ["c", { type: "bool", value: true }],
  ]);
  const data = new Uint8Array(24).fill(9);
  writeGguf(path, metadata, [
    { name: "w", dtype: "F32", shape: [2, 3], data: () => data },
    { name: "v", dtype: "BF16", shape: [1], data: () => data.subarray(22) },
  ]);
  const header = bytesOf(
    ...(["GGUF", [4, 3], [8, 2], [8, 3]] as const),
    ...([[8, 1], "a", [4, 4], [4, 7]] as const),
    ...([[8, 1], "b", [4, 9], [4, 8], [8, 2], [8, 1], "x", [8, 2], "é"] as const),
    ...([[8, 1], "c", [4, 7], [1, 1]] as const),
    // Innermost dimension first.
    ...([[8, 1], "w", [4, 2], [8, 3], [8, 2], [4, 0], [8, 0]] as const),
    ...([[8, 1], "v", [4, 1], [8, 1], [4, 30], [8, 32]] as const),
  );
  const padding = new Uint8Array((32 - (header.length % 32)) % 32);
  const expected = bytesOf(
    header,
    padding,
    data,
    new Uint8Array(8),
    data.subarray(22),
    new Uint8Array(30),
  );
  assert.deepEqual(readFileSync(path), expected);
});

test("values of every type come back, with the ends of their ranges", () => {
  const path = join(directory, "values.gguf");
  const metadata = new Map<string, GgufValue>([
    ["u8", { type: "u8", value: 255 }],
    ["i8", { type: "i8", value: -128 }],
    ["u16", { type: "u16", value: 65_535 }],
    ["i16", { type: "i16", value: -32_768 }],
    ["u32", { type: "u32", value: 2 ** 32 - 1 }],
    ["i32", { type: "i32", value: -(2 ** 31) }],
    ["f32", { type: "f32", value: Math.fround(1e-6) }],
    ["f64", { type: "f64", value: Math.PI }],
    ["u64", { type: "u64", value: 2n ** 64n - 1n }],
    ["i64", { type: "i64", value: -(2n ** 63n) }],
    ["bool", { type: "bool", value: false }],
    ["string", { type: "string", value: "<｜begin▁of▁sentence｜>" }],
    ["numbers", { type: "array", of: "i32", values: [1, -1] }],
    ["wide", { type: "array", of: "u64", values: [1n] }],
    ["flags", { type: "array", of: "bool", values: [true, false] }],
    ["none", { type: "array", of: "f32", values: [] }],
    // Longer than the reader's window.
    ["long", { type: "string", value: "x".repeat(3_000_000) }],
    [
      "tokens",
      { type: "array", of: "string", values: Array.from({ length: 5000 }, (_, i) => `t${i}`) },
    ],
  ]);
  writeGguf(path, metadata, []);
  using file = openGguf(path);
  assert.deepEqual(file.metadata, metadata);
  assert.throws(
    () => writeGguf(path, new Map([["u8", { type: "u8", value: 256 }]]), []),
    /256 must be/,
  );
  assert.throws(
    () => writeGguf(path, new Map([["u8", { type: "u8", value: 0.5 }]]), []),
    /0.5 must be/,
  );
});

test("random tensors of the three types come back, aligned", () => {
  for (let seed = 0; seed < 10; seed++) {
    const random = new Random(seed);
    const sources: GgufTensorSource[] = Array.from({ length: random.below(12) }, (_, i) => {
      const dtype = (["F32", "F16", "BF16"] as const)[random.below(3)]!;
      const shape = Array.from({ length: random.below(5) }, () => 1 + random.below(5));
      const numElements = shape.reduce((product, dimension) => product * dimension, 1);
      const bytes = encodeFloats(
        dtype,
        new Float32Array(numElements).map(() => random.normal()),
      );
      return { name: `blk.${i}.weight`, dtype, shape, data: () => bytes };
    });
    const path = join(directory, `random-${seed}.gguf`);
    writeGguf(path, new Map([["seed", { type: "u32", value: seed }]]), sources);
    using file = openGguf(path);
    assert.deepEqual(
      [...file.tensors.keys()],
      sources.map((source) => source.name),
    );
    for (const { name, dtype, shape, data } of sources) {
      const stored = file.tensors.get(name)!;
      assert.deepEqual([stored.dtype, stored.shape], [dtype, shape], `seed ${seed}, ${name}`);
      assert.equal(stored.begin % 32, 0, `seed ${seed}, ${name}`);
      assert.deepEqual([...file.read(name)], [...data()], `seed ${seed}, ${name}`);
    }
    assert.throws(() => file.read("none"), { code: "checkpoint.tensorMissing" });
  }
});

test("names that other readers cut off, and ranks that they lack, are never written", () => {
  const path = join(directory, "never.gguf");
  const source = { name: "w", dtype: "F32", shape: [1], data: () => new Uint8Array(4) } as const;
  const written = (changes: Partial<GgufTensorSource>) => (): void =>
    writeGguf(path, new Map(), [{ ...source, ...changes }]);
  assert.throws(written({ name: "x".repeat(64) }), /has 64 bytes/);
  assert.throws(written({ shape: [1, 1, 1, 1, 1] }), /has 5 dimensions/);
  assert.throws(written({ shape: [2] }), /gave 4 bytes, expected 8/);
  assert.throws(() => writeGguf(path, new Map(), [source, source]), /occurs twice/);
});

describe("a bad file is refused with the reason:", () => {
  const start = (numTensors: number, numPairs: number, version: number = 3): Buffer =>
    bytesOf("GGUF", [4, version], [8, numTensors], [8, numPairs]);
  const tensor = (shape: number[], type: number, offset: number, name: string = "w"): Buffer =>
    bytesOf(
      [8, name.length],
      name,
      [4, shape.length],
      ...shape.map((dimension): [8, number] => [8, dimension]),
      [4, type],
      [8, offset],
    );
  const padded = (header: Buffer, dataBytes: number): Buffer =>
    bytesOf(header, new Uint8Array(((32 - (header.length % 32)) % 32) + dataBytes));
  const pair = (key: string, ...value: [1 | 4 | 8, number][]): Buffer =>
    bytesOf([8, key.length], key, ...value);
  const cases: [string, RegExp, Buffer][] = [
    ["another magic", /invalid: .*no GGUF file/, bytesOf("GGML", [4, 3], [8, 0], [8, 0])],
    ["an older version", /invalid: .*GGUF version 2/, start(0, 0, 2)],
    ["an empty file", /truncated/, Buffer.alloc(0)],
    ["a cut header", /truncated/, start(0, 0).subarray(0, 20)],
    ["more tensors than the file could hold", /number of tensors is 4294967296/, start(2 ** 32, 0)],
    ["a negative count", /number of metadata pairs is 18446744073709551615/, start(0, -1)],
    ["a key longer than the file", /truncated/, bytesOf(start(0, 1), [8, 999], [8, 0], [8, 0])],
    ["a key of absurd length", /length is/, bytesOf(start(0, 1), [8, 2 ** 40], [8, 0], [8, 0])],
    ["an unknown value type", /value type 13/, bytesOf(start(0, 1), pair("a", [4, 13], [4, 0]))],
    ["an array of arrays", /value type 9/, bytesOf(start(0, 1), pair("a", [4, 9], [4, 9], [8, 1]))],
    [
      "an absurd array",
      /array's length is/,
      bytesOf(start(0, 1), pair("a", [4, 9], [4, 0], [8, 2 ** 40])),
    ],
    ["a boolean that is 2", /boolean is 2/, bytesOf(start(0, 1), pair("a", [4, 7], [1, 2]))],
    [
      "a key twice",
      /"a" occurs twice/,
      bytesOf(start(0, 2), pair("a", [4, 4], [4, 1]), pair("a", [4, 4], [4, 1])),
    ],
    [
      "an alignment that is no power of two",
      /power of two/,
      bytesOf(start(0, 1), pair("general.alignment", [4, 4], [4, 33])),
    ],
    [
      "five dimensions",
      /has 5 dimensions/,
      padded(bytesOf(start(1, 0), tensor([1, 1, 1, 1, 1], 0, 0)), 32),
    ],
    [
      "a shape that overflows",
      /too large/,
      padded(bytesOf(start(1, 0), tensor([2 ** 40, 2 ** 40], 0, 0)), 32),
    ],
    ["a type of no name", /has type 9/, padded(bytesOf(start(1, 0), tensor([32], 9, 0)), 64)],
    ["half a block", /no whole blocks/, padded(bytesOf(start(1, 0), tensor([16], 8, 0)), 64)],
    [
      "a tensor beyond the file",
      /ends at byte/,
      padded(bytesOf(start(1, 0), tensor([9], 0, 0)), 32),
    ],
    [
      "an offset that is not aligned",
      /not aligned/,
      padded(bytesOf(start(1, 0), tensor([1], 0, 4)), 64),
    ],
    [
      "tensors in one place",
      /overlaps/,
      padded(bytesOf(start(2, 0), tensor([1], 0, 0), tensor([1], 0, 0, "v")), 64),
    ],
    [
      "a tensor twice",
      /"w" occurs twice/,
      padded(bytesOf(start(2, 0), tensor([1], 0, 0), tensor([1], 0, 32)), 64),
    ],
  ];
  for (const [name, reason, bytes] of cases) {
    test(name, () => {
      const path = join(directory, "bad.gguf");
      writeFileSync(path, bytes);
      assert.throws(
        () => openGguf(path),
        (error: unknown) =>
          error instanceof OperationalError &&
          /^checkpoint\.(invalid|truncated)$/.test(error.code) &&
          reason.test(`${error.code.slice("checkpoint.".length)}: ${error.message}`),
      );
    });
  }
});

test("flipping any byte of a header gives a file that loads or is refused, no other error", () => {
  const path = join(directory, "flipped.gguf");
  const source = {
    name: "w",
    dtype: "F32",
    shape: [2, 2],
    data: () => new Uint8Array(16),
  } as const;
  writeGguf(path, new Map([["k", { type: "array", of: "string", values: ["a", "b"] }]]), [source]);
  const bytes = readFileSync(path);
  for (let at = 0; at < bytes.length - 32; at++) {
    for (const flip of [0x01, 0x80, 0xff]) {
      const mutated = Buffer.from(bytes);
      mutated[at]! ^= flip;
      writeFileSync(path, mutated);
      try {
        openGguf(path)[Symbol.dispose]();
      } catch (error) {
        assert.ok(error instanceof OperationalError, `byte ${at} ^ ${flip}: ${error}`);
      }
    }
  }
});
