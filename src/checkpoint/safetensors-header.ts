/**
 * @file The header of a safetensors file: strict reading from bytes that nobody vouches for.
 *
 *     u64 (little-endian) n | n bytes of JSON, starting with "{", spaces at the end | data
 *
 *     { "__metadata__": {string: string, …},
 *       NAME: {"dtype": string, "shape": [number, …], "data_offsets": [begin, end]}, … }
 *
 * Offsets count from the start of the data. What is refused: keys that occur twice, unknown keys
 * and dtypes, shapes whose product is not exact, ranges that are not exactly the shape's bytes,
 * ranges that overlap or leave a hole, data that is shorter or longer than the ranges, more than
 * 100 MB of header or 131,072 tensors. So every byte of an accepted file belongs to exactly one
 * thing.
 */
import { OperationalError } from "../base/errors.ts";
import { decodeUtf8, JsonScanner } from "./json-scanner.ts";
import type { ReadableFile } from "./readable-file.ts";
import { ELEMENT_BYTES, type StoredDtype, type TensorInfo, tensorBytes } from "./tensors.ts";

/** Bytes of the length that a file starts with. */
export const LENGTH_BYTES = 8;
export const HEADER_BYTES_MAX = 100_000_000;
export const NUM_TENSORS_MAX = 131_072;
/** The key that is no tensor. */
export const METADATA_KEY = "__metadata__";

/** A tensor and its place, in bytes from the start of the file. */
export interface StoredTensor extends TensorInfo {
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  readonly metadata: ReadonlyMap<string, string>;
  /** In the order of their data. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

/** Read and check the header of an open file. */
export function readHeader(file: ReadableFile): SafetensorsHeader {
  const invalid = invalidFile(file.path);
  if (file.numBytes < LENGTH_BYTES) throw truncatedFile(file, LENGTH_BYTES);
  const lengthBytes = new Uint8Array(LENGTH_BYTES);
  file.readInto(lengthBytes, 0);
  const headerBytes = new DataView(lengthBytes.buffer).getBigUint64(0, true);
  if (headerBytes > HEADER_BYTES_MAX) {
    throw invalid(`header of ${headerBytes} bytes; at most ${HEADER_BYTES_MAX} are allowed`);
  }
  const dataStart = LENGTH_BYTES + Number(headerBytes);
  if (file.numBytes < dataStart) throw truncatedFile(file, dataStart);
  const bytes = new Uint8Array(dataStart - LENGTH_BYTES);
  file.readInto(bytes, LENGTH_BYTES);

  const header = parseHeader(decodeUtf8(bytes, `header of ${file.path}`), file.path, dataStart);
  const tensors = inDataOrder(header.tensors, dataStart, invalid);
  const dataEnd = tensors.at(-1)?.end ?? dataStart;
  if (file.numBytes < dataEnd) throw truncatedFile(file, dataEnd);
  if (file.numBytes > dataEnd) {
    throw invalid(`${file.numBytes - dataEnd} bytes behind the last tensor`);
  }
  return {
    metadata: header.metadata,
    tensors: new Map(tensors.map((tensor) => [tensor.name, tensor])),
  };
}

function invalidFile(path: string): (problem: string) => OperationalError {
  return (problem) => new OperationalError("checkpoint.invalid", `${path}: ${problem}`, { path });
}

function truncatedFile(file: ReadableFile, expected: number): OperationalError {
  const { path, numBytes } = file;
  const message = `${path} has ${numBytes} bytes, expected ${expected}; copy or download it again`;
  return new OperationalError("checkpoint.truncated", message, { path, numBytes, expected });
}

function parseHeader(
  text: string,
  path: string,
  dataStart: number,
): { metadata: Map<string, string>; tensors: StoredTensor[] } {
  const scanner = new JsonScanner(text, `header of ${path}`);
  const metadata = new Map<string, string>();
  const tensors: StoredTensor[] = [];
  if (!text.startsWith("{")) scanner.fail("expected { at its first byte");
  scanner.object((name) => {
    if (name === METADATA_KEY) {
      scanner.object((key) => metadata.set(key, scanner.string()));
      return;
    }
    if (tensors.length === NUM_TENSORS_MAX) scanner.fail(`more than ${NUM_TENSORS_MAX} tensors`);
    tensors.push(parseTensor(scanner, name, dataStart));
  });
  scanner.end();
  return { metadata, tensors };
}

function parseTensor(scanner: JsonScanner, name: string, dataStart: number): StoredTensor {
  let dtype: StoredDtype | undefined;
  let shape: number[] | undefined;
  let offsets: number[] | undefined;
  const naturalNumbers = (): number[] => {
    const numbers: number[] = [];
    scanner.array(() => numbers.push(scanner.naturalNumber()));
    return numbers;
  };
  scanner.object((key) => {
    if (key === "dtype") dtype = parseDtype(scanner);
    else if (key === "shape") shape = naturalNumbers();
    else if (key === "data_offsets") offsets = naturalNumbers();
    else scanner.fail(`unknown key ${JSON.stringify(key)} in tensor ${JSON.stringify(name)}`);
  });
  const subject = `tensor ${JSON.stringify(name)}`;
  if (dtype === undefined || shape === undefined || offsets === undefined) {
    scanner.fail(`${subject} lacks one of dtype, shape, data_offsets`);
  }
  const [begin, end] = offsets;
  if (begin === undefined || end === undefined || offsets.length !== 2 || end < begin) {
    scanner.fail(`${subject} has data_offsets [${offsets}]; expected [begin, end]`);
  }
  const bytes = tensorBytes({ dtype, shape });
  if (bytes === undefined) scanner.fail(`${subject} of shape [${shape}] is too large to count`);
  if (end - begin !== bytes) {
    scanner.fail(`${subject} has ${end - begin} bytes; ${dtype} [${shape}] takes ${bytes}`);
  }
  if (!Number.isSafeInteger(dataStart + end)) scanner.fail(`${subject} lies beyond 2^53`);
  return { name, dtype, shape, begin: dataStart + begin, end: dataStart + end };
}

function parseDtype(scanner: JsonScanner): StoredDtype {
  const dtype = scanner.string();
  if (!Object.hasOwn(ELEMENT_BYTES, dtype)) {
    scanner.fail(`unknown dtype ${JSON.stringify(dtype)}`);
  }
  return dtype as StoredDtype;
}

/** The tensors sorted by place, after checking that they cover the data once and without a hole. */
function inDataOrder(
  tensors: StoredTensor[],
  dataStart: number,
  invalid: (problem: string) => OperationalError,
): StoredTensor[] {
  const sorted = tensors.toSorted((a, b) => a.begin - b.begin || a.end - b.end);
  let covered = dataStart;
  for (const tensor of sorted) {
    const subject = `tensor ${JSON.stringify(tensor.name)}`;
    if (tensor.begin < covered) throw invalid(`${subject} overlaps the tensor before it`);
    if (tensor.begin > covered) {
      throw invalid(`a hole of ${tensor.begin - covered} bytes before ${subject}`);
    }
    covered = tensor.end;
  }
  return sorted;
}
