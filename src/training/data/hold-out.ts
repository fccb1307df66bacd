/**
 * @file Which part of a corpus is held out for validation.
 *
 * Whole files are, so that no validation text has its other half in training. A file's side follows
 * from the hash of its name below the root, so adding files moves no other; of `.jsonl`, each
 * line's side follows from the hash of its text. Files of equal content are on one side, the first
 * one's, and so are equal lines. Three rules keep the split useful:
 *
 *   1. held-out files stop at twice the wanted share of the bytes, so that a large file is never
 *      held out by bad luck;
 *   2. if nothing is held out then, the file (else line) of the lowest hash that fits is;
 *   3. if no file fits (there is one, or a few large ones), the tail of every file is held out,
 *      from the start of a line.
 *
 * Hashes are the first 48 bits of SHA-256 as a number in [0, 1): the same on every machine.
 */
import { createHash } from "node:crypto";
import type { FileDocument } from "./document-reader.ts";

/** A file that was read through once. */
export interface ScannedFile {
  readonly path: string;
  readonly name: string;
  readonly numDocuments: number;
  readonly bytes: number;
  readonly numBadLines: number;
  /** Of the documents' texts. */
  readonly contentHash: string;
  readonly isLines: boolean;
  /** Over the lines of a `.jsonl` file; infinite, and the wrong way round, where there are none. */
  readonly lineKeyLowest: number;
  readonly lineKeyHighest: number;
}

/** The sides of a corpus. */
export type Split = "train" | "heldOut";

/**
 * The share of bytes at which whole files stop being held out, as a multiple of the wanted share.
 */
const EXCESS_MAX = 2;

function hashFraction(text: string): number {
  return createHash("sha256").update(text).digest().readUIntBE(0, 6) / 2 ** 48;
}

/** What decides the side of a line of a `.jsonl` file: equal texts have equal keys. */
export function lineKey(text: string): number {
  return hashFraction(text);
}

export function chooseHeldOut(files: readonly ScannedFile[], fraction: number): HeldOut {
  if (fraction === 0)
    return new HeldOut({ fraction, kind: "nothing", paths: new Set(), keyEnd: 0 });
  const bytesTotal = files.reduce((sum, file) => sum + file.bytes, 0);
  const bytesMax = fraction * EXCESS_MAX * bytesTotal;
  const groups = groupDuplicates(files).filter((group) => group.bytes <= bytesMax);
  const paths = new Set<string>();
  let bytes = 0;
  for (const group of groups) {
    if (group.hash >= fraction || bytes + group.bytes > bytesMax) continue;
    bytes += group.bytes;
    for (const path of group.paths) paths.add(path);
  }
  const lowest = files.reduce((low, file) => Math.min(low, file.lineKeyLowest), Infinity);
  const highest = files.reduce((high, file) => Math.max(high, file.lineKeyHighest), -Infinity);
  // Above the lowest key and at most the highest: some lines are held out, some are not.
  const keyEnd = lowest < fraction && fraction <= highest ? fraction : 0;
  const firstFit = groups[0];
  if (paths.size === 0 && keyEnd === 0) {
    if (firstFit !== undefined) for (const path of firstFit.paths) paths.add(path);
    else if (lowest < highest) return holdOutLine(fraction, lowest);
    else return new HeldOut({ fraction, kind: "tails", paths, keyEnd });
  }
  return new HeldOut({ fraction, kind: "files", paths, keyEnd });
}

/** Holds out the line of this key, and its duplicates; keys are multiples of 2⁻⁴⁸. */
function holdOutLine(fraction: number, key: number): HeldOut {
  return new HeldOut({ fraction, kind: "files", paths: new Set(), keyEnd: key + 2 ** -49 });
}

interface FileGroup {
  readonly hash: number;
  readonly paths: string[];
  bytes: number;
}

/**
 * Plain text files of equal content together, under the hash of the first name; lowest hash first.
 */
function groupDuplicates(files: readonly ScannedFile[]): FileGroup[] {
  const groups = new Map<string, FileGroup>();
  for (const { path, name, bytes, contentHash, isLines } of files) {
    if (isLines) continue;
    const group = groups.get(contentHash) ?? { hash: hashFraction(name), paths: [], bytes: 0 };
    group.paths.push(path);
    group.bytes += bytes;
    groups.set(contentHash, group);
  }
  return [...groups.values()].sort((a, b) => a.hash - b.hash);
}

interface HeldOutChoice {
  readonly fraction: number;
  readonly kind: "files" | "tails" | "nothing";
  /** The files held out whole. */
  readonly paths: ReadonlySet<string>;
  /** Lines with a key below this are held out. */
  readonly keyEnd: number;
}

/** The choice, and the text of a document that belongs to a side. */
export class HeldOut {
  readonly fraction: number;
  /** Whole files (and lines of `.jsonl`), the tails of all files, or nothing. */
  readonly kind: "files" | "tails" | "nothing";
  readonly paths: ReadonlySet<string>;
  readonly #keyEnd: number;

  constructor(choice: HeldOutChoice) {
    this.fraction = choice.fraction;
    this.kind = choice.kind;
    this.paths = choice.paths;
    this.#keyEnd = choice.keyEnd;
  }

  /** Whether the file can have anything on this side: saves reading it. */
  mayHold(file: ScannedFile, split: Split): boolean {
    if (file.isLines || this.kind === "tails") return true;
    return this.paths.has(file.path) === (split === "heldOut");
  }

  /**
   * The part of a document on this side, empty for none; `bytesBefore` of its file came before it.
   */
  partOf(file: ScannedFile, document: FileDocument, bytesBefore: number, split: Split): string {
    const isHeldOutSide = split === "heldOut";
    if (document.line !== undefined) {
      return lineKey(document.text) < this.#keyEnd === isHeldOutSide ? document.text : "";
    }
    if (this.kind !== "tails") {
      return this.paths.has(file.path) === isHeldOutSide ? document.text : "";
    }
    const cut = tailStart(document, file.bytes * (1 - this.fraction) - bytesBefore);
    return isHeldOutSide ? document.text.slice(cut) : document.text.slice(0, cut);
  }
}

/** Where in the document the file's tail begins: the line start at or after byte `wanted`. */
function tailStart(document: FileDocument, wanted: number): number {
  if (wanted <= 0) return 0;
  if (wanted >= document.bytes) return document.text.length;
  const wantedBytes = Math.floor(wanted);
  const head = Buffer.from(document.text).subarray(0, wantedBytes);
  // A character that the cut would divide belongs to the tail.
  const position = new TextDecoder("utf-8", { ignoreBOM: true }).decode(head, {
    stream: true,
  }).length;
  const lineEnd = document.text.indexOf("\n", position);
  return lineEnd < 0 || lineEnd + 1 === document.text.length ? position : lineEnd + 1;
}
