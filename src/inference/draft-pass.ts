/**
 * @file What the MTP module reads and gives in one pass: tokens of the pass before, the final
 * hidden states before them, a guess behind each sequence.
 *
 *   before_TD   final hidden state before each of T tokens: of the pass before, or the module's own
 *   hidden_SD   the module's output for the last token of each of S sequences
 *   logits_SV   of the tokens after those, if any are wanted
 *
 * Hidden states are copied in, so that they may stand where they are overwritten.
 */
import type { Model } from "../model/model.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { fillFrom, view } from "../tensor/view.ts";
import type { LatentCache } from "./latent-cache.ts";
import {
  allocateInputs,
  copyOfLogits,
  countRows,
  fillInputs,
  type InputShape,
  type PassCall,
  type PassInputs,
} from "./latent-pass.ts";

/** Tokens of the pass before for the MTP module to read, in rising positions. */
export interface DraftFeed {
  readonly cache: LatentCache;
  /** Row of the first of them in `PassResult.hidden`. */
  readonly firstRow: number;
  /** Position of that row. */
  readonly position: number;
  /** The token that follows each row. */
  readonly nextTokens: Int32Array;
  /** Whether the last row's logits are wanted. */
  readonly logits: boolean;
}

export interface DraftResult {
  /** The wanted logits of each feed. */
  readonly logits: readonly Float32Array[];
  /**
   * The module's output for each feed's last row, to draft behind it: the module then reads its own
   * guess at a position that is reserved, until a pass over the real token. Good until the next
   * pass.
   */
  readonly hidden: Tensor<FloatType>;
}

export interface DraftCall extends PassCall {
  /** The final hidden state before each token, row after row. */
  readonly before: Float32Array | Float64Array;
}

export interface DraftPlaces {
  readonly inputs: PassInputs;
  readonly before: Tensor<FloatType>;
  /** The last row of each sequence. */
  readonly lastRows: Tensor<"i32">;
  readonly hidden: Tensor<FloatType>;
  /** After each of them; no rows if none are wanted. */
  readonly logits: Tensor<FloatType>;
}

/** Memory for a pass of a shape. */
export function openDraft(
  arena: Arena,
  shape: InputShape,
  { model, call }: { readonly model: Model; readonly call: PassCall },
): DraftPlaces {
  const { tokens, sequences, wanted } = call;
  const { hiddenDim, vocabSize } = model.config;
  const numSequences = sequences.length;
  const row = (count: number, columns: number): Tensor<FloatType> =>
    arena.allocate(model.floatType, [count, columns]);
  return {
    inputs: allocateInputs(arena, shape),
    before: row(tokens.length, hiddenDim),
    lastRows: arena.allocate("i32", [1, numSequences]),
    hidden: row(numSequences, hiddenDim),
    logits: row(countRows(wanted) === 0 ? 0 : numSequences, vocabSize),
  };
}

/** The hidden states that feeds of the MTP module name, one after another. */
export function rowsBefore(
  hidden: Tensor<FloatType>,
  feeds: readonly DraftFeed[],
): DraftCall["before"] {
  const values = view(hidden);
  const { columns } = hidden;
  const numRows = countRows(feeds.map(({ nextTokens }) => nextTokens.length));
  const rows = new (hidden.dtype === "f64" ? Float64Array : Float32Array)(numRows * columns);
  let at = 0;
  for (const { firstRow, nextTokens } of feeds) {
    const end = firstRow + nextTokens.length;
    rows.set(values.subarray(firstRow * columns, end * columns), at);
    at += nextTokens.length * columns;
  }
  return rows;
}

export function fillDraft(places: DraftPlaces, shape: InputShape, call: DraftCall): void {
  fillInputs(places.inputs, shape, call);
  fillFrom(places.before, call.before);
  const lasts = call.sequences.map(({ firstToken, count }) => firstToken + count - 1);
  fillFrom(places.lastRows, lasts);
}

/** Of each sequence whose logits are wanted, those of its row. */
export function lastLogits(logits: Tensor<FloatType>, { wanted }: PassCall): Float32Array[] {
  const { columns } = logits;
  const all = copyOfLogits(logits);
  return wanted.map((rows, index) => all.subarray(index * columns, (index + rows) * columns));
}
