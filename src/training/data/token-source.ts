/**
 * @file What the loader reads: documents as token ids, without frames; a store on disk or a test's
 * array.
 */

/** Documents of token ids, read at random. */
export interface TokenSource {
  readonly numDocuments: number;
  /** Tokens of a document: its text's, no begin or end of sentence. */
  documentTokens(document: number): number;
  /** `count` tokens of a document from `start`; the caller's to keep. */
  read(document: number, start: number, count: number): Int32Array;
}
