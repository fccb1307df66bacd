/** @file Tests of one safetensors file: round trips, hostile files, and the bytes of the format. */
import assert from "node:assert/strict";
import {
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import { openSafetensors, writeSafetensors } from "./safetensors.ts";
import { ELEMENT_BYTES, type StoredDtype, type TensorSource, tensorBytes } from "./tensors.ts";

const directory = mkdtempSync(join(tmpdir(), "hadal-safetensors-"));
after(() => rmSync(directory, { recursive: true }));

/** A file made of a header text, or of its length and bytes, and so many bytes of data. */
function fileOf(header: string | Uint8Array, dataBytes: number, length?: bigint): string {
  const path = join(directory, "hostile.safetensors");
  const bytes = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const start = new Uint8Array(8);
  new DataView(start.buffer).setBigUint64(0, length ?? BigInt(bytes.length), true);
  writeFileSync(path, Buffer.concat([start, bytes, new Uint8Array(dataBytes)]));
  return path;
}

function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    assert.ok(error instanceof OperationalError, `${error}`);
    return `${error.code}: ${error.message}`;
  }
  return "accepted";
}

const F32_2 = '"dtype":"F32","shape":[2],"data_offsets":[0,8]';

test("the hostile files differ from an accepted one in one thing only", () => {
  using file = openSafetensors(fileOf(`{"a":{${F32_2}}}  \n`, 8));
  assert.deepEqual([...file.tensors.keys()], ["a"]);
  assert.deepEqual(file.read("a"), new Uint8Array(8));
});

describe("a hostile file is refused with the reason:", () => {
  const tensor = (dtype: string, shape: string, offsets: string): string =>
    `{"a":{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}}`;
  const two = (first: string, second: string): string =>
    `{"a":{"dtype":"U8","shape":[4],"data_offsets":${first}},` +
    `"b":{"dtype":"U8","shape":[4],"data_offsets":${second}}}`;
  const cases: [string, RegExp, string | Uint8Array, number, bigint?][] = [
    ["header length of 2^63", /invalid: .*header of 9223372036854775808/, "{}", 0, 1n << 63n],
    ["header length above 100 MB", /invalid: .*at most 100000000/, "{}", 0, 100_000_001n],
    ["header length beyond the file", /truncated: .*has 10 bytes, expected 1008/, "{}", 0, 1000n],
    ["empty header", /invalid: .*first byte/, "", 0],
    ["header that is not JSON", /invalid: .*expected \{/, "hello", 0],
    ["header that starts with a space", /invalid: .*first byte/, " {}", 0],
    ["header with a byte order mark", /invalid: .*first byte/, "\ufeff{}", 0],
    ["header that is an array", /invalid: .*first byte/, "[]", 0],
    ["header that ends early", /invalid: .*expected \}/, `{"a":{${F32_2}}`, 8],
    ["text behind the header", /invalid: .*after the end/, `{"a":{${F32_2}}}{}`, 8],
    ["bytes that are not UTF-8", /invalid: .*UTF-8/, new Uint8Array([0x7b, 0xff, 0x7d]), 0],
    ["half of a surrogate pair", /invalid: .*surrogate/, '{"\\ud800":{}}', 0],
    ["unknown escape", /invalid: .*escape/, '{"\\x41":{}}', 0],
    ["control character in a name", /invalid: .*control/, '{"a\u0001":{}}', 0],
    ["name that does not end", /invalid: .*without an end/, '{"aaaa', 0],
    ["tensor twice", /invalid: .*"a" occurs twice/, `{"a":{${F32_2}},"a":{${F32_2}}}`, 8],
    ["tensor twice, once escaped", /twice/, `{"a":{${F32_2}},"\\u0061":{${F32_2}}}`, 8],
    ["dtype twice", /invalid: .*"dtype" occurs twice/, `{"a":{"dtype":"U8",${F32_2}}}`, 8],
    ["metadata twice", /twice/, '{"__metadata__":{},"__metadata__":{}}', 0],
    ["metadata that is no text", /expected "/, '{"__metadata__":{"step":1}}', 0],
    ["key unknown", /unknown key "x"/, `{"a":{${F32_2},"x":1}}`, 8],
    ["dtype unknown", /unknown dtype "F33"/, tensor("F33", "[2]", "[0,8]"), 8],
    ["dtype of the prototype", /unknown dtype "toString"/, tensor("toString", "[2]", "[0,8]"), 8],
    ["dtype missing", /lacks one of/, '{"a":{"shape":[2],"data_offsets":[0,8]}}', 8],
    ["offsets missing", /lacks one of/, '{"a":{"dtype":"F32","shape":[2]}}', 8],
    ["shape negative", /whole number/, tensor("F32", "[-2]", "[0,8]"), 8],
    ["shape with a fraction", /whole number/, tensor("F32", "[2.0]", "[0,8]"), 8],
    ["shape with an exponent", /whole number/, tensor("F32", "[2e0]", "[0,8]"), 8],
    ["shape with a leading zero", /whole number/, tensor("F32", "[02]", "[0,8]"), 8],
    ["shape of booleans", /whole number/, tensor("F32", "[true,2]", "[0,8]"), 8],
    ["shape of NaN", /whole number/, tensor("F32", "[NaN]", "[0,8]"), 8],
    ["shape of null", /expected \[/, tensor("F32", "null", "[0,8]"), 8],
    ["shape nested", /whole number/, tensor("F32", "[[2]]", "[0,8]"), 8],
    ["shape nested deep", /whole number/, tensor("F32", "[".repeat(1e5), "[0,8]"), 8],
    ["dimension above 2^53", /above 2\^53/, tensor("U8", "[9007199254740993]", "[0,8]"), 8],
    ["product above 2^53", /too large/, tensor("U8", "[4294967296,4294967296]", "[0,8]"), 8],
    ["product that wraps to 0", /too large/, tensor("U8", "[4294967296,4294967296]", "[0,0]"), 0],
    [
      "product above 2^53 times 0",
      /too large/,
      tensor("U8", "[0,4294967296,4294967296]", "[0,0]"),
      0,
    ],
    ["offset negative", /whole number/, tensor("F32", "[2]", "[-8,0]"), 8],
    ["offsets turned around", /expected \[begin, end\]/, tensor("F32", "[0]", "[8,0]"), 8],
    ["offsets of three", /expected \[begin, end\]/, tensor("F32", "[2]", "[0,8,16]"), 8],
    [
      "offset at 2^53",
      /beyond 2\^53/,
      tensor("U8", "[0]", "[9007199254740991,9007199254740991]"),
      0,
    ],
    [
      "fewer bytes than the shape",
      /has 4 bytes; F32 \[2\] takes 8/,
      tensor("F32", "[2]", "[0,4]"),
      8,
    ],
    [
      "more bytes than the shape",
      /has 12 bytes; F32 \[2\] takes 8/,
      tensor("F32", "[2]", "[0,12]"),
      12,
    ],
    ["tensors that overlap", /"b" overlaps/, two("[0,4]", "[2,6]"), 6],
    ["tensors in one place", /"b" overlaps/, two("[0,4]", "[0,4]"), 4],
    [
      "empty tensor inside another",
      /overlaps/,
      `{"a":{${F32_2}},"b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}`,
      8,
    ],
    ["hole between tensors", /hole of 2 bytes before tensor "b"/, two("[0,4]", "[6,10]"), 10],
    ["hole before the first tensor", /hole of 2 bytes/, two("[2,6]", "[6,10]"), 10],
    ["bytes behind the last tensor", /1 bytes behind/, `{"a":{${F32_2}}}`, 9],
    ["data without tensors", /4 bytes behind/, "{}", 4],
    ["data that is short", /truncated: .*expected/, `{"a":{${F32_2}}}`, 7],
  ];
  for (const [name, reason, header, dataBytes, length] of cases) {
    test(name, () => {
      const outcome = codeOf(() => openSafetensors(fileOf(header, dataBytes, length)));
      assert.match(outcome, /^checkpoint\.(invalid|truncated): /);
      assert.match(outcome, reason);
    });
  }
});

test("flipping any byte of a header gives a file that loads or is refused, no other error", () => {
  const path = join(directory, "flipped.safetensors");
  const source: TensorSource = {
    name: "é",
    dtype: "F32",
    shape: [2],
    data: () => new Uint8Array(8),
  };
  writeSafetensors(path, [source]);
  const bytes = readFileSync(path);
  for (let at = 0; at < bytes.length - 8; at++) {
    for (const flip of [0x01, 0x20, 0x80, 0xff]) {
      const mutated = Buffer.from(bytes);
      mutated[at]! ^= flip;
      writeFileSync(path, mutated);
      codeOf(() => openSafetensors(path)[Symbol.dispose]());
    }
  }
});

test("a file of fewer than eight bytes, a missing file and a directory are refused", () => {
  const path = join(directory, "short.safetensors");
  writeFileSync(path, new Uint8Array(7));
  assert.match(
    codeOf(() => openSafetensors(path)),
    /^checkpoint\.truncated/,
  );
  assert.match(
    codeOf(() => openSafetensors(join(directory, "none"))),
    /^checkpoint\.missing/,
  );
  assert.match(
    codeOf(() => openSafetensors(directory)),
    /^checkpoint\.invalid.*regular file/,
  );
});

test("too many tensors are refused, a name of many megabytes is not", () => {
  const entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}';
  const many = Array.from({ length: 131_073 }, (_, i) => `"${i}":${entry}`).join(",");
  assert.match(
    codeOf(() => openSafetensors(fileOf(`{${many}}`, 0))),
    /more than 131072 tensors/,
  );
  const long = "x".repeat(20_000_000);
  using file = openSafetensors(fileOf(`{"${long}":${entry}}`, 0));
  assert.equal(file.tensors.size, 1);
});

test("a file that shrinks after it was opened is reported as truncated", () => {
  const path = fileOf(`{"a":{${F32_2}}}`, 8);
  using file = openSafetensors(path);
  truncateSync(path, 20);
  assert.match(
    codeOf(() => file.read("a")),
    /^checkpoint\.truncated/,
  );
});

test("the bytes written are exactly these", () => {
  const path = join(directory, "exact.safetensors");
  const data = new Uint8Array([1, 2, 3, 4]);
  writeSafetensors(path, [
    { name: "b", dtype: "U8", shape: [2, 2], data: () => data },
    { name: "a", dtype: "F32", shape: [1], data: () => data },
    { name: "c", dtype: "U8", shape: [0], data: () => data.subarray(4) },
  ]);
  const header =
    '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},' +
    '"b":{"dtype":"U8","shape":[2,2],"data_offsets":[4,8]},' +
    '"c":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}}';
  const padded = header.padEnd(Math.ceil(header.length / 8) * 8, " ");
  const expected = Buffer.concat([
    new Uint8Array([padded.length, 0, 0, 0, 0, 0, 0, 0]),
    Buffer.from(padded),
    data,
    data,
  ]);
  assert.deepEqual(readFileSync(path), expected);
  assert.equal(readdirSync(directory).filter((name) => name.includes(".tmp-")).length, 0);
});

test("random tensors of all dtypes and shapes come back, whole or into a caller's memory", () => {
  const dtypes = Object.keys(ELEMENT_BYTES) as StoredDtype[];
  for (let seed = 0; seed < 20; seed++) {
    const random = new Random(seed);
    const bytesOf = new Map<string, Uint8Array>();
    const sources: TensorSource[] = [];
    for (let i = 0; i < random.below(30); i++) {
      const dtype = dtypes[random.below(dtypes.length)]!;
      const shape = Array.from({ length: random.below(4) }, () => random.below(7));
      const name = `layer.${i}."\\ü\u{1f642}__proto__`
        .slice(0, 3 + random.below(20))
        .toWellFormed();
      const unique = i === 0 ? "__proto__" : `${name}#${i}`;
      const bytes = new Uint8Array(tensorBytes({ dtype, shape })!).map(() => random.below(256));
      bytesOf.set(unique, bytes);
      sources.push({ name: unique, dtype, shape, data: () => bytes });
    }
    const path = join(directory, `random-${seed}.safetensors`);
    writeSafetensors(path, sources, { seed: String(seed) });
    using file = openSafetensors(path);
    assert.equal(file.metadata.get("seed"), String(seed));
    assert.equal(file.tensors.size, sources.length, `seed ${seed}`);
    for (const { name, dtype, shape } of sources) {
      const stored = file.tensors.get(name)!;
      assert.deepEqual([stored.dtype, stored.shape], [dtype, shape], `seed ${seed}, ${name}`);
      assert.equal(stored.begin % ELEMENT_BYTES[dtype], 0, `seed ${seed}, ${name} is aligned`);
      assert.deepEqual(file.read(name), bytesOf.get(name), `seed ${seed}, ${name}`);
      const shared = new Uint8Array(new SharedArrayBuffer(stored.end - stored.begin));
      file.readInto(name, shared);
      assert.deepEqual([...shared], [...bytesOf.get(name)!], `seed ${seed}, ${name}`);
    }
  }
});

test("the order of the sources does not change the file", () => {
  const sources = ["q", "k", "v"].map(
    (name, i): TensorSource => ({ name, dtype: "U8", shape: [1], data: () => new Uint8Array([i]) }),
  );
  const paths = [sources, sources.toReversed()].map((list, i) => {
    const path = join(directory, `order-${i}.safetensors`);
    writeSafetensors(path, list);
    return path;
  });
  assert.deepEqual(readFileSync(paths[0]!), readFileSync(paths[1]!));
});

test("a tensor that is not there is named, a target of another length is our bug", () => {
  using file = openSafetensors(fileOf(`{"a":{${F32_2}}}`, 8));
  assert.match(
    codeOf(() => file.read("b")),
    /^checkpoint\.tensorMissing: .*"b"/,
  );
  assert.throws(() => file.readInto("a", new Uint8Array(7)), /target of 7 bytes/);
});

test("a source that gives the wrong number of bytes leaves neither file nor temporary", () => {
  const path = join(directory, "wrong.safetensors");
  const source: TensorSource = {
    name: "a",
    dtype: "F32",
    shape: [2],
    data: () => new Uint8Array(7),
  };
  assert.throws(() => writeSafetensors(path, [source]), /gave 7 bytes, expected 8/);
  assert.throws(() => writeSafetensors(path, [source, source]), /occurs twice/);
  assert.deepEqual(
    readdirSync(directory).filter((name) => name.startsWith("wrong")),
    [],
  );
});

test("tensors beyond 4 GiB are read where they are, without reading what is before them", () => {
  const path = join(directory, "sparse.safetensors");
  const far = 5 * 2 ** 30;
  const header =
    `{"a":{"dtype":"U8","shape":[${far}],"data_offsets":[0,${far}]},` +
    `"b":{"dtype":"U8","shape":[3],"data_offsets":[${far},${far + 3}]}}`;
  writeFileSync(
    path,
    Buffer.concat([new Uint8Array([header.length, 0, 0, 0, 0, 0, 0, 0]), Buffer.from(header)]),
  );
  // A sparse file: five gigabytes that take no space.
  truncateSync(path, 8 + header.length + far + 3);
  using file = openSafetensors(path);
  assert.equal(file.tensors.get("a")?.end, 8 + header.length + far);
  assert.deepEqual(file.read("b"), new Uint8Array(3));
});
