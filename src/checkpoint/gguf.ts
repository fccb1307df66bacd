/**
 * @file GGUF version 3: what the container can hold, and a writer.
 *
 *     "GGUF" | u32 version | u64 number of tensors | u64 number of metadata pairs
 *     pairs:    string key, u32 value type, value      (string = u64 bytes, UTF-8)
 *     tensors:  string name, u32 number of dimensions, u64 dimensions innermost first,
 *               u32 tensor type, u64 offset from the start of the data
 *     padding | data, each tensor padded to the alignment of 32
 *
 * All little-endian. Shapes here are outermost first, as everywhere in this code; the writer turns
 * them around. Tensor types are the unquantised floats and two of blocks (gguf-blocks.ts). What the
 * keys and names mean is not known here.
 *
 * Source: docs/gguf.md of the ggml project.
 */
import { assert } from "../base/errors.ts";
import { roundUp } from "../base/integers.ts";
import { type FileSink, streamFileAtomically } from "./atomic.ts";
import type { FloatDtype } from "./float-codec.ts";
import { BLOCK_BYTES, BLOCK_VALUES, type BlockDtype } from "./gguf-blocks.ts";
import { tensorBytes } from "./tensors.ts";

export const GGUF_MAGIC = 0x46554747;
export const GGUF_VERSION = 3;
export const GGUF_ALIGNMENT = 32;
/**
 * Readers keep names in buffers of 64 bytes with a zero at the end, and at most four dimensions.
 */
export const GGUF_NAME_BYTES_MAX = 63;
export const GGUF_RANK_MAX = 4;

/** Codes of the value types; "array" is 9 and has an element type of its own. */
export const GGUF_VALUE_TYPES = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  u64: 10,
  i64: 11,
  f64: 12,
} as const;
export const GGUF_ARRAY_TYPE = 9;

export type GgufTensorDtype = FloatDtype | BlockDtype;

/** Codes of the tensor types that are written and read here. */
export const GGUF_TENSOR_TYPES: Readonly<Record<GgufTensorDtype, number>> = {
  F32: 0,
  F16: 1,
  Q4_0: 2,
  Q8_0: 8,
  BF16: 30,
};

/**
 * Bytes of a tensor; undefined if they are no safe integer, or if rows are not whole blocks.
 */
export function ggufTensorBytes(
  dtype: GgufTensorDtype,
  shape: readonly number[],
): number | undefined {
  if (dtype !== "Q8_0" && dtype !== "Q4_0") return tensorBytes({ dtype, shape });
  const bytes = tensorBytes({ dtype: "F32", shape });
  const isWhole = (shape.at(-1) ?? 1) % BLOCK_VALUES === 0;
  if (bytes === undefined || !isWhole) return undefined;
  return (bytes / (4 * BLOCK_VALUES)) * BLOCK_BYTES[dtype];
}

type NumberType = "u8" | "i8" | "u16" | "i16" | "u32" | "i32" | "f32" | "f64";
type BigintType = "u64" | "i64";
export type GgufScalarType = keyof typeof GGUF_VALUE_TYPES;

export type GgufValue =
  | { readonly type: NumberType; readonly value: number }
  | { readonly type: BigintType; readonly value: bigint }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "array"; readonly of: NumberType; readonly values: readonly number[] }
  | { readonly type: "array"; readonly of: BigintType; readonly values: readonly bigint[] }
  | { readonly type: "array"; readonly of: "bool"; readonly values: readonly boolean[] }
  | { readonly type: "array"; readonly of: "string"; readonly values: readonly string[] };

/** A tensor to write; its bytes are asked for when their turn comes, and not kept. */
export interface GgufTensorSource {
  readonly name: string;
  readonly dtype: GgufTensorDtype;
  readonly shape: readonly number[];
  readonly data: () => Uint8Array;
}

function sourceBytes({ name, dtype, shape }: GgufTensorSource): number {
  const bytes = ggufTensorBytes(dtype, shape);
  assert(bytes !== undefined, `tensor ${name} of shape [${shape}] cannot be ${dtype}`);
  return bytes;
}

/** Bytes that grow; the header of a model with its tokenizer is some megabytes. */
class ByteBuilder {
  #bytes = new Uint8Array(1 << 16);
  #view = new DataView(this.#bytes.buffer);
  #numBytes = 0;

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#numBytes);
  }

  /** Room for `count` more bytes; returns where they start. */
  #grow(count: number): number {
    const start = this.#numBytes;
    this.#numBytes += count;
    if (this.#numBytes > this.#bytes.length) {
      const larger = new Uint8Array(2 * this.#numBytes);
      larger.set(this.#bytes);
      this.#bytes = larger;
      this.#view = new DataView(larger.buffer);
    }
    return start;
  }

  scalar(type: GgufScalarType, value: number | bigint | boolean | string): void {
    if (type === "string") this.string(value as string);
    else if (type === "bool") this.#view.setUint8(this.#grow(1), value === true ? 1 : 0);
    else this.#number(type, value as number | bigint);
  }

  #number(type: NumberType | BigintType, value: number | bigint): void {
    const { numBytes, set } = NUMBER_WRITERS[type];
    const at = this.#grow(numBytes);
    set(this.#view, at, value);
  }

  u32(value: number): void {
    this.#number("u32", value);
  }

  u64(value: number): void {
    this.#number("u64", BigInt(value));
  }

  string(text: string): void {
    assert(text.isWellFormed(), "a GGUF string must be well-formed Unicode");
    const encoded = new TextEncoder().encode(text);
    this.u64(encoded.length);
    const start = this.#grow(encoded.length);
    this.#bytes.set(encoded, start);
  }

  padTo(alignment: number): void {
    this.#grow(roundUp(this.#numBytes, alignment) - this.#numBytes);
  }
}

interface NumberWriter {
  readonly numBytes: number;
  readonly set: (view: DataView, at: number, value: number | bigint) => void;
}

const NUMBER_WRITERS: Record<NumberType | BigintType, NumberWriter> = {
  u8: { numBytes: 1, set: (view, at, value) => view.setUint8(at, inRange(value, 0, 2 ** 8)) },
  i8: {
    numBytes: 1,
    set: (view, at, value) => view.setInt8(at, inRange(value, -(2 ** 7), 2 ** 7)),
  },
  u16: {
    numBytes: 2,
    set: (view, at, value) => view.setUint16(at, inRange(value, 0, 2 ** 16), true),
  },
  i16: {
    numBytes: 2,
    set: (view, at, value) => view.setInt16(at, inRange(value, -(2 ** 15), 2 ** 15), true),
  },
  u32: {
    numBytes: 4,
    set: (view, at, value) => view.setUint32(at, inRange(value, 0, 2 ** 32), true),
  },
  i32: {
    numBytes: 4,
    set: (view, at, value) => view.setInt32(at, inRange(value, -(2 ** 31), 2 ** 31), true),
  },
  f32: { numBytes: 4, set: (view, at, value) => view.setFloat32(at, Number(value), true) },
  f64: { numBytes: 8, set: (view, at, value) => view.setFloat64(at, Number(value), true) },
  u64: {
    numBytes: 8,
    set: (view, at, value) => {
      const wide = BigInt(value);
      assert(wide >= 0n && wide < 1n << 64n, `${wide} is no u64`);
      view.setBigUint64(at, wide, true);
    },
  },
  i64: {
    numBytes: 8,
    set: (view, at, value) => {
      const wide = BigInt(value);
      assert(wide >= -(1n << 63n) && wide < 1n << 63n, `${wide} is no i64`);
      view.setBigInt64(at, wide, true);
    },
  },
};

function inRange(value: number | bigint, least: number, bound: number): number {
  const number = Number(value);
  assert(
    Number.isInteger(number) && number >= least && number < bound,
    `${value} must be a whole number in [${least}, ${bound})`,
  );
  return number;
}

function encodePair(out: ByteBuilder, key: string, entry: GgufValue): void {
  out.string(key);
  if (entry.type !== "array") {
    out.u32(GGUF_VALUE_TYPES[entry.type]);
    out.scalar(entry.type, entry.value);
    return;
  }
  out.u32(GGUF_ARRAY_TYPE);
  out.u32(GGUF_VALUE_TYPES[entry.of]);
  out.u64(entry.values.length);
  for (const value of entry.values) out.scalar(entry.of, value);
}

function encodeHeader(
  metadata: ReadonlyMap<string, GgufValue>,
  sources: readonly GgufTensorSource[],
): Uint8Array {
  const out = new ByteBuilder();
  out.u32(GGUF_MAGIC);
  out.u32(GGUF_VERSION);
  out.u64(sources.length);
  out.u64(metadata.size);
  for (const [key, value] of metadata) encodePair(out, key, value);
  const names = new Set<string>();
  let offset = 0;
  for (const source of sources) {
    const { name, dtype, shape } = source;
    const nameBytes = new TextEncoder().encode(name).length;
    assert(nameBytes <= GGUF_NAME_BYTES_MAX, `tensor name ${name} has ${nameBytes} bytes`);
    assert(!names.has(name), `tensor ${name} occurs twice`);
    assert(shape.length <= GGUF_RANK_MAX, `tensor ${name} has ${shape.length} dimensions`);
    names.add(name);
    out.string(name);
    out.u32(shape.length);
    for (const dimension of shape.toReversed()) out.u64(dimension);
    out.u32(GGUF_TENSOR_TYPES[dtype]);
    out.u64(offset);
    offset += roundUp(sourceBytes(source), GGUF_ALIGNMENT);
  }
  out.padTo(GGUF_ALIGNMENT);
  return out.bytes;
}

function writePadded(sink: FileSink, data: Uint8Array): void {
  sink.write(data);
  sink.write(new Uint8Array(roundUp(data.length, GGUF_ALIGNMENT) - data.length));
}

/** Write a file; metadata and tensors keep their order, each source is asked for its bytes once. */
export function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  sources: readonly GgufTensorSource[],
): void {
  assert(!metadata.has("general.alignment"), "the alignment is 32 and need not be stated");
  const header = encodeHeader(metadata, sources);
  streamFileAtomically(path, (sink) => {
    sink.write(header);
    for (const source of sources) {
      const data = source.data();
      const expected = sourceBytes(source);
      assert(
        data.length === expected,
        `tensor ${source.name} gave ${data.length} bytes, expected ${expected}`,
      );
      writePadded(sink, data);
    }
  });
}
