/**
 * @file A tokenised corpus on disk, so that a second run and a resumed one need not tokenise again.
 *
 * The file's name has the first half of its key, the hash of the corpus (contents, names, split)
 * and the tokenizer; the key stands whole in the header. Written beside and renamed: a file under
 * its name is complete.
 *
 *     header   128 bytes, see HEADER
 *     tokens   2 bytes each for vocabularies to 65,536, else 4; padded to 8 bytes
 *     starts   float64 × (documents + 1): where each document begins, counted in tokens
 *
 * Numbers are in the machine's byte order, and the header says which; a file from another kind of
 * machine, a damaged or a shortened one is made anew. Tokens are read by position when asked for,
 * so a store may exceed memory.
 */
import { createHash } from "node:crypto";
import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { assert, OperationalError } from "../../base/errors.ts";
import { roundUp } from "../../base/integers.ts";
import { makeDirectories } from "../../checkpoint/atomic.ts";
import { TokenBuffer } from "../../tokenizer/token-buffer.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { writeTokenizerFiles } from "../../tokenizer/tokenizer-json.ts";
import type { Corpus } from "./corpus.ts";
import type { Split } from "./hold-out.ts";
import type { TokenSource } from "./token-source.ts";

const MAGIC = "HADALTK1";
const HEADER_BYTES = 128;
/** Read back as another number on a machine of the other byte order. */
const BYTE_ORDER_MARK = 0x01020304;
const WRITE_TOKENS = 2 ** 18;

export interface TokenStoreOptions {
  /** Where stores are kept; made if it is not there. */
  readonly folder: string;
  readonly corpus: Corpus;
  readonly split: Split;
  readonly tokenizer: Tokenizer;
  readonly onProgress?: (progress: { readonly documents: number; readonly bytes: number }) => void;
}

/** The store of a corpus side: the one in the folder, else a new one. */
export async function openTokenStore(options: TokenStoreOptions): Promise<TokenStore> {
  const key = storeKey(options);
  const name = `${options.split}-${key.toString("hex").slice(0, 32)}.tokens`;
  const path = join(options.folder, name);
  const present = TokenStore.open(path, key);
  if (present !== undefined) return present;
  makeDirectories(options.folder);
  await writeStore(path, key, options);
  const written = TokenStore.open(path, key);
  assert(written !== undefined, `the store just written, ${path}, must be valid`);
  return written;
}

function storeKey({ corpus, split, tokenizer }: TokenStoreOptions): Buffer {
  const tokenizerJson = writeTokenizerFiles(tokenizer, { contextTokensMax: 0 })["tokenizer.json"];
  const hash = createHash("sha256").update(`${MAGIC} ${split} ${corpus.fingerprint}\n`);
  return hash.update(tokenizerJson).digest();
}

interface Header {
  readonly tokenBytes: number;
  readonly numTokens: number;
  readonly numDocuments: number;
  /** UTF-8 bytes of the documents. */
  readonly numTextBytes: number;
  readonly key: Buffer;
}

/**
 * Offsets: magic 0, byte order mark 8, token bytes 12, tokens 16, documents 24, text bytes 32, key
 * 40.
 */
function encodeHeader(header: Header): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.write(MAGIC, 0, "latin1");
  new Uint32Array(bytes.buffer, bytes.byteOffset + 8, 2).set([BYTE_ORDER_MARK, header.tokenBytes]);
  const counts = [header.numTokens, header.numDocuments, header.numTextBytes];
  new Float64Array(bytes.buffer, bytes.byteOffset + 16, 3).set(counts);
  header.key.copy(bytes, 40);
  return bytes;
}

function decodeHeader(bytes: Buffer): Header | undefined {
  const [mark, tokenBytes] = new Uint32Array(bytes.buffer, bytes.byteOffset + 8, 2);
  const counts = new Float64Array(bytes.buffer, bytes.byteOffset + 16, 3);
  if (bytes.toString("latin1", 0, 8) !== MAGIC || mark !== BYTE_ORDER_MARK) return undefined;
  if (tokenBytes !== 2 && tokenBytes !== 4) return undefined;
  if (!counts.every((count) => Number.isSafeInteger(count) && count >= 0)) return undefined;
  return {
    tokenBytes,
    numTokens: counts[0]!,
    numDocuments: counts[1]!,
    numTextBytes: counts[2]!,
    key: bytes.subarray(40, 72),
  };
}

function startsOffset(header: Header): number {
  return HEADER_BYTES + roundUp(header.numTokens * header.tokenBytes, 8);
}

function fileBytes(header: Header): number {
  return startsOffset(header) + (header.numDocuments + 1) * 8;
}

async function writeStore(path: string, key: Buffer, options: TokenStoreOptions): Promise<void> {
  const temporary = `${path}.${process.pid}.partial`;
  const file = openSync(temporary, "w");
  let isDone = false;
  try {
    await writeTo(file, key, options);
    fsyncSync(file);
    isDone = true;
  } finally {
    closeSync(file);
    if (!isDone) rmSync(temporary, { force: true });
  }
  renameSync(temporary, path);
}

async function writeTo(file: number, key: Buffer, options: TokenStoreOptions): Promise<void> {
  const { tokenizer } = options;
  const tokenBytes = tokenizer.vocabSize <= 2 ** 16 ? 2 : 4;
  const starts = [0];
  const held = new TokenBuffer();
  let [numTokens, numTextBytes, position] = [0, 0, HEADER_BYTES];
  const flush = (): void => {
    const ids = tokenBytes === 2 ? Uint16Array.from(held.view()) : Uint32Array.from(held.view());
    position += writeAll(file, ids, position);
    held.clear();
  };
  for await (const document of options.corpus.documents(options.split)) {
    const before = held.length;
    tokenizer.encodeTo(held, document.text);
    numTokens += held.length - before;
    numTextBytes += document.bytes;
    starts.push(numTokens);
    if (held.length >= WRITE_TOKENS) flush();
    options.onProgress?.({ documents: starts.length - 1, bytes: numTextBytes });
  }
  flush();
  const numDocuments = starts.length - 1;
  const header: Header = { tokenBytes, numTokens, numDocuments, numTextBytes, key };
  writeAll(file, Float64Array.from(starts), startsOffset(header));
  writeAll(file, encodeHeader(header), 0);
}

function writeAll(
  file: number,
  data: NodeJS.TypedArray<ArrayBufferLike>,
  position: number,
): number {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  let written = 0;
  while (written < bytes.length) {
    written += writeSync(file, bytes, written, bytes.length - written, position + written);
  }
  return written;
}

/** Documents of token ids in a file; `using` closes it. */
export class TokenStore implements TokenSource {
  readonly path: string;
  readonly numTokens: number;
  readonly numDocuments: number;
  /** UTF-8 bytes of all documents' text. */
  readonly numTextBytes: number;
  readonly #file: number;
  readonly #tokenBytes: number;
  readonly #starts: Float64Array;

  private constructor(path: string, file: number, header: Header, starts: Float64Array) {
    this.path = path;
    this.numTokens = header.numTokens;
    this.numDocuments = header.numDocuments;
    this.numTextBytes = header.numTextBytes;
    this.#file = file;
    this.#tokenBytes = header.tokenBytes;
    this.#starts = starts;
  }

  /** The store at `path` if it is there, whole and has this key. */
  static open(path: string, key: Buffer): TokenStore | undefined {
    let file: number;
    try {
      file = openSync(path, "r");
    } catch {
      return undefined;
    }
    const store = TokenStore.#openFile(path, file, key);
    if (store === undefined) closeSync(file);
    return store;
  }

  static #openFile(path: string, file: number, key: Buffer): TokenStore | undefined {
    const { size } = fstatSync(file);
    if (size < HEADER_BYTES) return undefined;
    const head = Buffer.alloc(HEADER_BYTES);
    readAll(path, file, head, 0);
    const header = decodeHeader(head);
    if (header === undefined || !header.key.equals(key) || fileBytes(header) !== size) {
      return undefined;
    }
    const starts = new Float64Array(header.numDocuments + 1);
    readAll(path, file, starts, startsOffset(header));
    if (starts[0] !== 0 || starts[header.numDocuments] !== header.numTokens) return undefined;
    return new TokenStore(path, file, header, starts);
  }

  documentTokens(document: number): number {
    return this.#starts[document + 1]! - this.#starts[document]!;
  }

  read(document: number, start: number, count: number): Int32Array {
    assert(start >= 0, `start (${start}) must be >= 0`);
    const available = this.documentTokens(document) - start;
    assert(count <= available, `count (${count}) must be at most ${available} in ${document}`);
    const ids = this.#tokenBytes === 2 ? new Uint16Array(count) : new Uint32Array(count);
    const first = this.#starts[document]! + start;
    readAll(this.path, this.#file, ids, HEADER_BYTES + first * this.#tokenBytes);
    return Int32Array.from(ids);
  }

  [Symbol.dispose](): void {
    closeSync(this.#file);
  }
}

function readAll(
  path: string,
  file: number,
  into: NodeJS.TypedArray<ArrayBufferLike>,
  position: number,
): void {
  const bytes = Buffer.from(into.buffer, into.byteOffset, into.byteLength);
  let done = 0;
  while (done < bytes.length) {
    const count = readSync(file, bytes, done, bytes.length - done, position + done);
    if (count === 0) {
      const message = `${path} ends at byte ${position + done}; it was shortened, run again`;
      throw new OperationalError("data.truncated", message, { path });
    }
    done += count;
  }
}
