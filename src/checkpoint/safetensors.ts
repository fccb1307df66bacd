/**
 * @file One safetensors file: open and read tensor by tensor, or write it tensor by tensor.
 *
 * Reading touches the header and the bytes asked for, never the whole file. Writing holds one
 * tensor at a time; the file appears under its name when it is complete and on the disk. The order
 * is fixed, wider elements first and then by name, so the same tensors give the same bytes and
 * every tensor is aligned to its element.
 *
 * Source: the format's description in its repository (huggingface/safetensors).
 */
import { assert, OperationalError } from "../base/errors.ts";
import { roundUp } from "../base/integers.ts";
import { streamFileAtomically } from "./atomic.ts";
import { ReadableFile } from "./readable-file.ts";
import {
  HEADER_BYTES_MAX,
  LENGTH_BYTES,
  METADATA_KEY,
  readHeader,
  type SafetensorsHeader,
  type StoredTensor,
} from "./safetensors-header.ts";
import { ELEMENT_BYTES, type TensorReader, type TensorSource, tensorBytes } from "./tensors.ts";

/** An open file; close it with `using` or `[Symbol.dispose]()`. */
export class SafetensorsFile implements TensorReader {
  readonly path: string;
  readonly #file: ReadableFile;
  readonly #header: SafetensorsHeader;

  constructor(path: string) {
    this.path = path;
    this.#file = new ReadableFile(path);
    try {
      this.#header = readHeader(this.#file);
    } catch (error) {
      this.#file[Symbol.dispose]();
      throw error;
    }
  }

  get metadata(): ReadonlyMap<string, string> {
    return this.#header.metadata;
  }

  /** In the order of their data. */
  get tensors(): ReadonlyMap<string, StoredTensor> {
    return this.#header.tensors;
  }

  fileOf(_name: string): string {
    return this.path;
  }

  read(name: string): Uint8Array<ArrayBuffer> {
    const { begin, end } = this.#find(name);
    const bytes = new Uint8Array(end - begin);
    this.#file.readInto(bytes, begin);
    return bytes;
  }

  readInto(name: string, target: Uint8Array): void {
    const { begin, end } = this.#find(name);
    assert(
      target.length === end - begin,
      `target of ${target.length} bytes for tensor ${name} of ${end - begin}`,
    );
    this.#file.readInto(target, begin);
  }

  #find(name: string): StoredTensor {
    const tensor = this.#header.tensors.get(name);
    if (tensor === undefined) throw tensorMissing(name, this.path);
    return tensor;
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

export function tensorMissing(name: string, path: string): OperationalError {
  const message = `${path} has no tensor ${JSON.stringify(name)}; is it a model of another shape?`;
  return new OperationalError("checkpoint.tensorMissing", message, { path, name });
}

/** Open a file and check its header. */
export function openSafetensors(path: string): SafetensorsFile {
  return new SafetensorsFile(path);
}

/** Bytes of a tensor to write, whose shape is ours and therefore sound. */
export function sourceBytes(source: TensorSource): number {
  const bytes = tensorBytes(source);
  assert(bytes !== undefined, `tensor ${source.name} of shape [${source.shape}] is too large`);
  return bytes;
}

function byWidthThenName(a: TensorSource, b: TensorSource): number {
  if (a.dtype !== b.dtype) {
    const widerFirst = ELEMENT_BYTES[b.dtype] - ELEMENT_BYTES[a.dtype];
    if (widerFirst !== 0) return widerFirst;
  }
  return a.name < b.name ? -1 : 1;
}

function encodeHeader(
  sources: readonly TensorSource[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  // Member by member, because a tensor may have any name, "__proto__" too.
  const members = [`${JSON.stringify(METADATA_KEY)}:${JSON.stringify(metadata)}`];
  const names = new Set([METADATA_KEY]);
  let begin = 0;
  for (const source of sources) {
    const { name, dtype, shape } = source;
    assert(!names.has(name), `tensor ${name} occurs twice`);
    names.add(name);
    const end = begin + sourceBytes(source);
    const entry = JSON.stringify({ dtype, shape, data_offsets: [begin, end] });
    members.push(`${JSON.stringify(name)}:${entry}`);
    begin = end;
  }
  const json = new TextEncoder().encode(`{${members.join(",")}}`);
  const bytes = new Uint8Array(roundUp(LENGTH_BYTES + json.length, 8)).fill(0x20);
  assert(bytes.length <= HEADER_BYTES_MAX, `header of ${bytes.length} bytes; write more shards`);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(bytes.length - LENGTH_BYTES), true);
  bytes.set(json, LENGTH_BYTES);
  return bytes;
}

/** Write a file; each source is asked for its bytes once, in the order of the file. */
export function writeSafetensors(
  path: string,
  sources: readonly TensorSource[],
  metadata: Readonly<Record<string, string>> = { format: "pt" },
): void {
  const ordered = sources.toSorted(byWidthThenName);
  const header = encodeHeader(ordered, metadata);
  streamFileAtomically(path, (sink) => {
    sink.write(header);
    for (const source of ordered) {
      const data = source.data();
      const expected = sourceBytes(source);
      assert(
        data.length === expected,
        `tensor ${source.name} gave ${data.length} bytes, expected ${expected}`,
      );
      sink.write(data);
    }
  });
}
