/**
 * @file A corpus: the documents of files and folders, and which of them are held out for
 * validation.
 *
 * `openCorpus` reads every file once, to check, count and hash it; `documents` reads again,
 * streaming, so a corpus may be larger than memory. What is left out is counted, never silently
 * dropped. Which documents are held out is decided in hold-out.ts.
 */
import { createHash } from "node:crypto";
import { assert, OperationalError } from "../../base/errors.ts";
import {
  type FileDocument,
  type FileFault,
  faultOf,
  isJsonLines,
  type ReadOptions,
  readDocuments,
} from "./document-reader.ts";
import { walkFiles } from "./file-walk.ts";
import { chooseHeldOut, type HeldOut, lineKey, type ScannedFile, type Split } from "./hold-out.ts";

export interface CorpusOptions {
  readonly paths: readonly string[];
  /** Only files whose names end so, such as `.d.ts`; all files unless said otherwise. */
  readonly nameEndings?: readonly string[];
  /** The share of the bytes to hold out, below a half; 0 holds out nothing. */
  readonly heldOutFraction: number;
  /** Longer texts are cut, longer JSON lines left out; 16 MiB unless said otherwise. */
  readonly documentBytesMax?: number;
}

/** What was found and what was left out. */
export interface CorpusReport {
  readonly files: number;
  readonly documents: number;
  /** UTF-8 bytes of all documents. */
  readonly bytes: number;
  readonly skippedBinary: number;
  readonly skippedInvalidUtf8: number;
  readonly skippedEmpty: number;
  readonly skippedUnreadable: number;
  /** Files and whole folders that a `.gitignore` excludes. */
  readonly skippedIgnored: number;
  /** Lines of `.jsonl` files without a text. */
  readonly skippedLines: number;
}

export interface CorpusDocument extends FileDocument {
  readonly path: string;
}

const DOCUMENT_BYTES_MAX = 2 ** 24;

/** Reads all files once; refuses a corpus without a single document. */
export async function openCorpus(options: CorpusOptions): Promise<Corpus> {
  const { heldOutFraction, documentBytesMax = DOCUMENT_BYTES_MAX } = options;
  assert(documentBytesMax >= 1, `documentBytesMax (${documentBytesMax}) must be >= 1`);
  if (!(heldOutFraction >= 0 && heldOutFraction < 0.5)) {
    const message = `heldOutFraction is ${heldOutFraction}; it must be at least 0 and below 0.5`;
    throw new OperationalError("config.heldOutFraction", message);
  }
  const walk = walkFiles(options.paths);
  const skipped = { binary: 0, invalidUtf8: 0, unreadable: walk.numUnreadable, empty: 0, lines: 0 };
  const files: ScannedFile[] = [];
  for (const file of walk.files) {
    if (options.nameEndings?.some((ending) => file.name.endsWith(ending)) === false) continue;
    const scanned = await scanFile(file, documentBytesMax);
    if (typeof scanned === "string") skipped[scanned]++;
    else {
      skipped.lines += scanned.numBadLines;
      if (scanned.numDocuments === 0) skipped.empty++;
      else files.push(scanned);
    }
  }
  const report: CorpusReport = {
    files: files.length,
    documents: files.reduce((sum, file) => sum + file.numDocuments, 0),
    bytes: files.reduce((sum, file) => sum + file.bytes, 0),
    skippedBinary: skipped.binary,
    skippedInvalidUtf8: skipped.invalidUtf8,
    skippedEmpty: skipped.empty,
    skippedUnreadable: skipped.unreadable,
    skippedIgnored: walk.numIgnored,
    skippedLines: skipped.lines,
  };
  if (files.length === 0) {
    throw new OperationalError(
      "data.empty",
      `no text in ${options.paths.join(", ")} (${describeSkipped(report)}); ` +
        "give files of UTF-8 text, or .jsonl lines with a text field",
      { report },
    );
  }
  const heldOut = chooseHeldOut(files, heldOutFraction);
  return new Corpus(files, heldOut, report, documentBytesMax);
}

/** Checked files and their split. */
export class Corpus {
  readonly report: CorpusReport;
  readonly heldOut: HeldOut;
  /** Changes when any document, name or the split does: what a token cache is keyed by. */
  readonly fingerprint: string;
  readonly #files: readonly ScannedFile[];
  readonly #documentBytesMax: number;

  constructor(
    files: readonly ScannedFile[],
    heldOut: HeldOut,
    report: CorpusReport,
    documentBytesMax: number,
  ) {
    this.#files = files;
    this.heldOut = heldOut;
    this.report = report;
    this.#documentBytesMax = documentBytesMax;
    const described = files.map(({ name, contentHash }) => [name, contentHash]);
    const settings = [heldOut.fraction, documentBytesMax];
    this.fingerprint = sha256(JSON.stringify([settings, described]));
  }

  /** The documents of one side, in the order of the files. */
  async *documents(split: Split): AsyncGenerator<CorpusDocument> {
    const options = { documentBytesMax: this.#documentBytesMax, onBadLine: (): void => {} };
    for (const file of this.#files) {
      if (!this.heldOut.mayHold(file, split)) continue;
      yield* this.#documentsOf(file, split, options);
    }
  }

  /** Texts of the training side until `bytesMax` bytes: what a vocabulary is learned from. */
  async sampleTexts(bytesMax: number): Promise<string[]> {
    const texts: string[] = [];
    let bytes = 0;
    for await (const document of this.documents("train")) {
      if (bytes >= bytesMax) break;
      texts.push(document.text);
      bytes += document.bytes;
    }
    return texts;
  }

  async *#documentsOf(
    file: ScannedFile,
    split: Split,
    options: ReadOptions,
  ): AsyncGenerator<CorpusDocument> {
    let bytesBefore = 0;
    try {
      for await (const document of readDocuments(file.path, options)) {
        const part = this.heldOut.partOf(file, document, bytesBefore, split);
        bytesBefore += document.bytes;
        if (part !== "") yield toDocument(file.path, document, part);
      }
    } catch (error) {
      const fault = faultOf(error);
      if (fault === undefined) throw error;
      const message = `${file.path} could be read before and cannot now (${fault}); run again`;
      throw new OperationalError("data.changed", message, { path: file.path }, error);
    }
  }
}

function toDocument(path: string, document: FileDocument, part: string): CorpusDocument {
  if (part.length === document.text.length) return { ...document, path };
  return { path, line: document.line, text: part, bytes: Buffer.byteLength(part) };
}

async function scanFile(
  { path, name }: { path: string; name: string },
  documentBytesMax: number,
): Promise<ScannedFile | FileFault> {
  const hash = createHash("sha256");
  let [numDocuments, bytes, numBadLines] = [0, 0, 0];
  let [lineKeyLowest, lineKeyHighest] = [Infinity, -Infinity];
  const isLines = isJsonLines(path);
  try {
    const options = { documentBytesMax, onBadLine: (): void => void numBadLines++ };
    for await (const document of readDocuments(path, options)) {
      numDocuments++;
      bytes += document.bytes;
      // The lengths tell "ab", "c" from "a", "bc" in a file of lines; a text file's parts are one
      // text.
      if (isLines) hash.update(`${document.bytes} `);
      hash.update(document.text);
      if (!isLines) continue;
      const key = lineKey(document.text);
      lineKeyLowest = Math.min(lineKeyLowest, key);
      lineKeyHighest = Math.max(lineKeyHighest, key);
    }
  } catch (error) {
    const fault = faultOf(error);
    if (fault !== undefined) return fault;
    throw error;
  }
  const contentHash = hash.digest("hex");
  const counted = { path, name, numDocuments, bytes, numBadLines };
  return { ...counted, contentHash, isLines, lineKeyLowest, lineKeyHighest };
}

function sha256(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

/** What was left out, in words. */
function describeSkipped(report: CorpusReport): string {
  const counts: readonly [number, string][] = [
    [report.skippedBinary, "binary"],
    [report.skippedInvalidUtf8, "not UTF-8"],
    [report.skippedEmpty, "empty"],
    [report.skippedUnreadable, "unreadable"],
    [report.skippedIgnored, "ignored by .gitignore"],
    [report.skippedLines, "lines without text"],
  ];
  const found = counts.filter(([count]) => count > 0).map(([count, why]) => `${count} ${why}`);
  return found.length === 0 ? "no files" : `left out: ${found.join(", ")}`;
}
