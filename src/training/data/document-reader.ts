/**
 * @file The documents of one file, streamed: plain text, JSON lines, and either compressed with
 * gzip.
 *
 * A text file is one document; a longer one than `documentBytesMax` is cut into several, after the
 * last line end that fits, so that a file of any size is read in bounded memory. Of `.jsonl` each
 * line is a document, its `text` field; lines that are too long, not UTF-8, not JSON or without
 * text are counted and left out. UTF-8 is checked strictly; a byte order mark at the start is
 * dropped. A file with a zero byte in its first 8000 is binary, as git has it.
 */
import { createReadStream } from "node:fs";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import { OperationalError } from "../../base/errors.ts";

/** One text to learn from. */
export interface FileDocument {
  readonly text: string;
  /** UTF-8 bytes of the text. */
  readonly bytes: number;
  /** The line in a `.jsonl` file, from 1; undefined for plain text. */
  readonly line: number | undefined;
}

/** Why a file is left out whole; `data.` and the fault is the code of the error. */
export const FILE_FAULTS = ["binary", "invalidUtf8", "unreadable"] as const;
export type FileFault = (typeof FILE_FAULTS)[number];

/** The fault that an error of `readDocuments` tells of. */
export function faultOf(error: unknown): FileFault | undefined {
  if (!(error instanceof OperationalError)) return undefined;
  return FILE_FAULTS.find((fault) => error.code === `data.${fault}`);
}

export interface ReadOptions {
  readonly documentBytesMax: number;
  readonly onBadLine: () => void;
}

const BINARY_CHECK_BYTES = 8000;
const LINE_FEED = 0x0a;

export function isJsonLines(path: string): boolean {
  return /\.jsonl(\.gz)?$/i.test(path);
}

/** The file's documents in order; throws what `faultOf` knows, perhaps after some documents. */
export async function* readDocuments(
  path: string,
  options: ReadOptions,
): AsyncGenerator<FileDocument> {
  const chunks = readChunks(path);
  if (isJsonLines(path)) yield* readJsonLines(chunks, options);
  else yield* readText(chunks, options.documentBytesMax, path);
}

async function* readChunks(path: string): AsyncGenerator<Uint8Array> {
  const file = createReadStream(path, { highWaterMark: 2 ** 18 });
  // The error reaches the loop below through the last stream.
  const stream = /\.gz$/i.test(path) ? pipeline(file, createGunzip(), () => {}) : file;
  let bytesChecked = 0;
  try {
    for await (const chunk of stream as AsyncIterable<Uint8Array>) {
      if (bytesChecked < BINARY_CHECK_BYTES) {
        const head = chunk.subarray(0, BINARY_CHECK_BYTES - bytesChecked);
        if (head.includes(0)) throw faultError(path, "binary", "it has a zero byte");
        bytesChecked += head.length;
      }
      yield chunk;
    }
  } catch (error) {
    throw faultOf(error) === undefined ? faultError(path, "unreadable", error) : error;
  } finally {
    file.destroy();
  }
}

async function* readText(
  chunks: AsyncIterable<Uint8Array>,
  documentBytesMax: number,
  path: string,
): AsyncGenerator<FileDocument> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  let held = "";
  /** Bytes of `held`, with those the decoder still keeps. */
  let heldBytes = 0;
  for await (const chunk of chunks) {
    held += decodeStrictly(decoder, chunk, path);
    heldBytes += chunk.length;
    while (heldBytes > documentBytesMax) {
      const cut = cutWithin(held, documentBytesMax);
      if (cut === held.length) break;
      yield plainDocument(held.slice(0, cut));
      held = held.slice(cut);
      heldBytes = Buffer.byteLength(held);
    }
  }
  held += decodeStrictly(decoder, undefined, path);
  if (held !== "") yield plainDocument(held);
}

function faultError(path: string, fault: FileFault, cause: unknown): OperationalError {
  return new OperationalError(`data.${fault}`, `${path} is left out: ${cause}`, { path }, cause);
}

function plainDocument(text: string): FileDocument {
  return { text, bytes: Buffer.byteLength(text), line: undefined };
}

function decodeStrictly(
  decoder: InstanceType<typeof TextDecoder>,
  chunk: Uint8Array | undefined,
  path: string,
): string {
  try {
    return chunk === undefined ? decoder.decode() : decoder.decode(chunk, { stream: true });
  } catch (error) {
    throw faultError(path, "invalidUtf8", error);
  }
}

/**
 * Where to cut so that at most `bytesMax` bytes stand before: after a line, else after a character.
 */
function cutWithin(text: string, bytesMax: number): number {
  if (Buffer.byteLength(text) <= bytesMax) return text.length;
  let bytes = 0;
  let end = 0;
  let lineEnd = 0;
  for (;;) {
    const codePoint = text.codePointAt(end)!;
    bytes += codePoint < 0x80 ? 1 : codePoint < 0x800 ? 2 : codePoint < 0x10000 ? 3 : 4;
    if (bytes > bytesMax) break;
    end += codePoint > 0xffff ? 2 : 1;
    if (codePoint === LINE_FEED) lineEnd = end;
  }
  return lineEnd > 0 ? lineEnd : Math.max(end, text.codePointAt(0)! > 0xffff ? 2 : 1);
}

async function* readJsonLines(
  chunks: AsyncIterable<Uint8Array>,
  options: ReadOptions,
): AsyncGenerator<FileDocument> {
  let line = 0;
  for await (const bytes of readLines(chunks, options.documentBytesMax)) {
    line++;
    const text = bytes === undefined ? undefined : textOfLine(bytes);
    if (text === undefined) options.onBadLine();
    else if (text !== "") yield { text, bytes: Buffer.byteLength(text), line };
  }
}

/** Lines without their ends; undefined for one longer than `bytesMax`, whose bytes are not kept. */
async function* readLines(
  chunks: AsyncIterable<Uint8Array>,
  bytesMax: number,
): AsyncGenerator<Uint8Array | undefined> {
  let parts: Uint8Array[] = [];
  let bytes = 0;
  const add = (part: Uint8Array): void => {
    bytes += part.length;
    if (bytes <= bytesMax) parts.push(part);
    else parts = [];
  };
  const take = (): Uint8Array | undefined => {
    const whole = bytes <= bytesMax ? Buffer.concat(parts) : undefined;
    parts = [];
    bytes = 0;
    return whole;
  };
  for await (const chunk of chunks) {
    let start = 0;
    for (let end = chunk.indexOf(LINE_FEED); end >= 0; end = chunk.indexOf(LINE_FEED, start)) {
      add(chunk.subarray(start, end));
      yield take();
      start = end + 1;
    }
    add(chunk.subarray(start));
  }
  if (bytes > 0) yield take();
}

/** The `text` of a line; empty for a blank line, undefined for a bad one. */
function textOfLine(bytes: Uint8Array): string | undefined {
  try {
    const line = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    if (line.trim() === "") return "";
    const value: unknown = JSON.parse(line);
    if (typeof value !== "object" || value === null || !("text" in value)) return undefined;
    return typeof value.text === "string" ? value.text.toWellFormed() : undefined;
  } catch {
    return undefined;
  }
}
