/**
 * @file A bounded reader of GGUF version 3, for checking what was written.
 *
 * It trusts nothing: every count is held against what the rest of the file could contain before
 * anything is allocated, sums are exact, names and keys occur once, and every tensor lies inside
 * the data, aligned, after the one before it. Arrays of arrays, and tensor types that are not
 * written here, are refused.
 */
import { OperationalError } from "../base/errors.ts";
import { roundUp } from "../base/integers.ts";
import {
  GGUF_ALIGNMENT,
  GGUF_ARRAY_TYPE,
  GGUF_MAGIC,
  GGUF_NAME_BYTES_MAX,
  GGUF_RANK_MAX,
  GGUF_TENSOR_TYPES,
  GGUF_VALUE_TYPES,
  GGUF_VERSION,
  type GgufScalarType,
  type GgufTensorDtype,
  type GgufValue,
  ggufTensorBytes,
} from "./gguf.ts";
import { decodeUtf8 } from "./json-scanner.ts";
import { ReadableFile } from "./readable-file.ts";
import { tensorMissing } from "./safetensors.ts";

const NUM_PAIRS_MAX = 65_536;
const NUM_TENSORS_MAX = 131_072;
const STRING_BYTES_MAX = 16 * 2 ** 20;
const NUM_ARRAY_ELEMENTS_MAX = 16 * 2 ** 20;
const ALIGNMENT_KEY = "general.alignment";

/**
 * The least a pair can take: key length, type, one byte; and a tensor: name length, rank, type,
 * offset.
 */
const PAIR_BYTES_MIN = 8 + 4 + 1;
const TENSOR_BYTES_MIN = 8 + 4 + 4 + 8;

/** A tensor and its place, in bytes from the start of the file. */
export interface GgufTensor {
  readonly name: string;
  readonly dtype: GgufTensorDtype;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

/** Reads values one after another, a window of the file at a time. */
class Cursor {
  readonly #file: ReadableFile;
  #window: Uint8Array<ArrayBuffer> = new Uint8Array(0);
  #windowStart = 0;
  position = 0;

  constructor(file: ReadableFile) {
    this.#file = file;
  }

  fail(problem: string): never {
    const { path } = this.#file;
    const message = `${path}: ${problem} (at byte ${this.position})`;
    throw new OperationalError("checkpoint.invalid", message, { path });
  }

  /** A view of the next bytes, which must exist. */
  take(count: number): DataView {
    const end = this.position + count;
    if (end > this.#file.numBytes) {
      const { path, numBytes } = this.#file;
      const message = `${path} has ${numBytes} bytes, its header needs ${end}; copy it again`;
      throw new OperationalError("checkpoint.truncated", message, { path });
    }
    if (end > this.#windowStart + this.#window.length) {
      const wanted = Math.max(count, 2 ** 20);
      this.#window = new Uint8Array(Math.min(wanted, this.#file.numBytes - this.position));
      this.#windowStart = this.position;
      this.#file.readInto(this.#window, this.position);
    }
    const view = new DataView(this.#window.buffer, this.position - this.#windowStart, count);
    this.position = end;
    return view;
  }

  u32(): number {
    return this.take(4).getUint32(0, true);
  }

  u64(): bigint {
    return this.take(8).getBigUint64(0, true);
  }

  /** A u64 that must not exceed `most`. */
  count(what: string, most: number): number {
    const value = this.u64();
    if (value > BigInt(most)) this.fail(`${what} is ${value}, at most ${most} is allowed`);
    return Number(value);
  }

  /** How many things of at least `bytesMin` bytes the rest of the file can hold, up to a limit. */
  numWithin(bytesMin: number, most: number): number {
    return Math.min(most, Math.floor((this.#file.numBytes - this.position) / bytesMin));
  }

  string(bytesMax: number): string {
    const view = this.take(this.count("a string's length", bytesMax));
    const bytes = new Uint8Array(view.buffer as ArrayBuffer, view.byteOffset, view.byteLength);
    return decodeUtf8(bytes, `a string of ${this.#file.path}`);
  }

  scalar(type: GgufScalarType): number | bigint | boolean | string {
    return SCALAR_READERS[type](this);
  }
}

const SCALAR_READERS: Record<
  GgufScalarType,
  (cursor: Cursor) => number | bigint | boolean | string
> = {
  u8: (cursor) => cursor.take(1).getUint8(0),
  i8: (cursor) => cursor.take(1).getInt8(0),
  u16: (cursor) => cursor.take(2).getUint16(0, true),
  i16: (cursor) => cursor.take(2).getInt16(0, true),
  u32: (cursor) => cursor.u32(),
  i32: (cursor) => cursor.take(4).getInt32(0, true),
  f32: (cursor) => cursor.take(4).getFloat32(0, true),
  f64: (cursor) => cursor.take(8).getFloat64(0, true),
  u64: (cursor) => cursor.u64(),
  i64: (cursor) => cursor.take(8).getBigInt64(0, true),
  bool: (cursor) => {
    const byte = cursor.take(1).getUint8(0);
    if (byte > 1) cursor.fail(`a boolean is ${byte}`);
    return byte === 1;
  },
  string: (cursor) => cursor.string(STRING_BYTES_MAX),
};

const TYPE_OF_CODE = new Map(
  Object.entries(GGUF_VALUE_TYPES).map(([type, code]) => [code as number, type as GgufScalarType]),
);
const DTYPE_OF_CODE = new Map(
  Object.entries(GGUF_TENSOR_TYPES).map(([dtype, code]) => [
    code as number,
    dtype as GgufTensorDtype,
  ]),
);

function readScalarType(cursor: Cursor): GgufScalarType {
  const code = cursor.u32();
  return TYPE_OF_CODE.get(code) ?? cursor.fail(`value type ${code} is not known`);
}

function readValue(cursor: Cursor): GgufValue {
  const code = cursor.u32();
  if (code !== GGUF_ARRAY_TYPE) {
    const type = TYPE_OF_CODE.get(code) ?? cursor.fail(`value type ${code} is not known`);
    return { type, value: cursor.scalar(type) } as GgufValue;
  }
  const of = readScalarType(cursor);
  const length = cursor.count("an array's length", cursor.numWithin(1, NUM_ARRAY_ELEMENTS_MAX));
  const values: unknown[] = [];
  for (let i = 0; i < length; i++) values.push(cursor.scalar(of));
  return { type: "array", of, values } as GgufValue;
}

function readMetadata(cursor: Cursor, numPairs: number): Map<string, GgufValue> {
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < numPairs; i++) {
    const key = cursor.string(65_535);
    if (metadata.has(key)) cursor.fail(`key ${JSON.stringify(key)} occurs twice`);
    metadata.set(key, readValue(cursor));
  }
  return metadata;
}

/** A tensor with its offset from the start of the data, which is not known yet. */
function readTensorInfo(
  cursor: Cursor,
): Pick<GgufTensor, "name" | "dtype" | "shape"> & { readonly offset: number } {
  const name = cursor.string(GGUF_NAME_BYTES_MAX);
  const rank = cursor.u32();
  if (rank > GGUF_RANK_MAX) cursor.fail(`tensor ${JSON.stringify(name)} has ${rank} dimensions`);
  const shape: number[] = [];
  for (let i = 0; i < rank; i++) {
    shape.unshift(cursor.count(`a dimension of ${name}`, Number.MAX_SAFE_INTEGER));
  }
  const code = cursor.u32();
  const dtype = DTYPE_OF_CODE.get(code);
  if (dtype === undefined) cursor.fail(`tensor ${JSON.stringify(name)} has type ${code}`);
  return { name, dtype, shape, offset: cursor.count("an offset", Number.MAX_SAFE_INTEGER) };
}

/** Metadata and the places of the tensors, checked against the file. */
function readHeader(file: ReadableFile): {
  metadata: Map<string, GgufValue>;
  tensors: Map<string, GgufTensor>;
} {
  const cursor: Cursor = new Cursor(file);
  if (cursor.u32() !== GGUF_MAGIC) cursor.fail("no GGUF file");
  const version = cursor.u32();
  if (version !== GGUF_VERSION) cursor.fail(`GGUF version ${version}, expected ${GGUF_VERSION}`);
  const numTensors = cursor.count(
    "the number of tensors",
    cursor.numWithin(TENSOR_BYTES_MIN, NUM_TENSORS_MAX),
  );
  const numPairs = cursor.count(
    "the number of metadata pairs",
    cursor.numWithin(PAIR_BYTES_MIN, NUM_PAIRS_MAX),
  );
  const metadata = readMetadata(cursor, numPairs);
  const infos = Array.from({ length: numTensors }, () => readTensorInfo(cursor));
  const alignment = readAlignment(cursor, metadata);
  const dataStart = roundUp(cursor.position, alignment);
  const tensors = new Map<string, GgufTensor>();
  let covered = 0;
  for (const { name, dtype, shape, offset } of infos) {
    const subject = `tensor ${JSON.stringify(name)}`;
    const bytes = ggufTensorBytes(dtype, shape);
    if (bytes === undefined) {
      cursor.fail(`${subject} of shape [${shape}] is too large to count, or no whole blocks`);
    }
    if (offset % alignment !== 0) cursor.fail(`${subject} lies at ${offset}, not aligned`);
    if (offset !== roundUp(covered, alignment)) cursor.fail(`${subject} overlaps or leaves a hole`);
    if (tensors.has(name)) cursor.fail(`${subject} occurs twice`);
    covered = offset + bytes;
    const end = dataStart + covered;
    if (end > file.numBytes) cursor.fail(`${subject} ends at byte ${end} of ${file.numBytes}`);
    tensors.set(name, { name, dtype, shape, begin: dataStart + offset, end });
  }
  return { metadata, tensors };
}

function readAlignment(cursor: Cursor, metadata: ReadonlyMap<string, GgufValue>): number {
  const entry = metadata.get(ALIGNMENT_KEY);
  if (entry === undefined) return GGUF_ALIGNMENT;
  const alignment = entry.type === "u32" ? entry.value : 0;
  const isPowerOfTwo = alignment > 0 && Number.isInteger(Math.log2(alignment));
  if (!isPowerOfTwo || alignment > 65_536) cursor.fail(`${ALIGNMENT_KEY} must be a power of two`);
  return alignment;
}

/** An open GGUF file; close it with `using`. */
export class GgufFile implements Disposable {
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly #file: ReadableFile;

  constructor(path: string) {
    this.#file = new ReadableFile(path);
    try {
      const { metadata, tensors } = readHeader(this.#file);
      this.metadata = metadata;
      this.tensors = tensors;
    } catch (error) {
      this.#file[Symbol.dispose]();
      throw error;
    }
  }

  /** A copy of a tensor's bytes. */
  read(name: string): Uint8Array<ArrayBuffer> {
    const tensor = this.tensors.get(name);
    if (tensor === undefined) throw tensorMissing(name, this.#file.path);
    const bytes = new Uint8Array(tensor.end - tensor.begin);
    this.#file.readInto(bytes, tensor.begin);
    return bytes;
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

export function openGguf(path: string): GgufFile {
  return new GgufFile(path);
}
