/**
 * @file The dispatch plan of one MoE layer in one pass: which row of the sorted choices belongs to
 * which token.
 *
 * Rows are the T·K (token, expert) choices, sorted by expert, tokens in order within an expert.
 * Nothing is dropped and nothing padded. `offsets` drives the grouped products; `rowOfChoice`
 * brings results back to their tokens. Where the experts of a layer are on several ranks, tokens
 * are those that came here and rows are those of their choices whose experts are here; all other
 * choices share one more row, of zeros.
 */
import { divExact } from "../base/integers.ts";
import { planDispatch } from "../kernels/dispatch/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { Pass } from "./pass.ts";

export interface DispatchPlan {
  /** First row of each expert, [1, E+1]. */
  readonly offsets: Tensor<"i32">;
  /** [1, R] */
  readonly tokenOfRow: Tensor<"i32">;
  /** [T, K] */
  readonly rowOfChoice: Tensor<"i32">;
  /** The same with a row of its own for every choice, those beyond R nobody's; [T, K]. */
  readonly placeOfChoice: Tensor<"i32">;
  /** Whether some choices have no expert here; row R is theirs. */
  readonly hasZeroRow: boolean;
}

/** Sort `choice` [T, K] by expert; the plan is saved for backward. */
export function makeDispatchPlan(
  pass: Pass,
  choice: Tensor<"i32">,
  numExperts: number,
): DispatchPlan {
  const offsets = pass.nextOffsets?.() ?? pass.saved.allocate("i32", [1, numExperts + 1]);
  const plan = sortChoices(pass, choice, offsets);
  return { ...plan, placeOfChoice: plan.rowOfChoice, hasZeroRow: false };
}

/** The same for tokens that came from other ranks; choices are of this rank's experts, or < 0. */
export function makeReceivedPlan(
  pass: Pass,
  choices: Int32Array,
  { numChosen, numExperts }: { readonly numChosen: number; readonly numExperts: number },
): DispatchPlan {
  const { saved } = pass;
  const shape = [divExact(choices.length, numChosen), numChosen];
  const numRows = choices.reduce((sum, expert) => sum + (expert < 0 ? 0 : 1), 0);
  const choice = saved.allocate("i32", shape);
  // One more expert, the last, takes what is not for this rank.
  view(choice).set(choices.map((expert) => (expert < 0 ? numExperts : expert)));
  const sorted = sortChoices(pass, choice, saved.allocate("i32", [1, numExperts + 2]));
  const rowOfChoice = saved.allocate("i32", shape);
  view(rowOfChoice).set(view(sorted.rowOfChoice).map((row) => Math.min(row, numRows)));
  return {
    offsets: beginning(sorted.offsets, numExperts + 1),
    tokenOfRow: beginning(sorted.tokenOfRow, numRows),
    rowOfChoice,
    placeOfChoice: sorted.rowOfChoice,
    hasZeroRow: true,
  };
}

function sortChoices({ saved, device }: Pass, choice: Tensor<"i32">, offsets: Tensor<"i32">) {
  const { rows, columns } = choice;
  const tokenOfRow = saved.allocate("i32", [1, rows * columns]);
  const rowOfChoice = saved.allocate("i32", [rows, columns]);
  planDispatch(device, { choice, offsets, tokenOfRow, rowOfChoice });
  return { offsets, tokenOfRow, rowOfChoice };
}

function beginning(tensor: Tensor<"i32">, columns: number): Tensor<"i32"> {
  return { ...tensor, shape: [1, columns], columns, rowStride: columns };
}

/** Memory for what experts make of each row. */
export interface ExpertRows {
  /** [R, columns] */
  readonly rows: Tensor<FloatType>;
  /** With the row of zeros behind them, if the plan has one: what choices read. */
  readonly all: Tensor<FloatType>;
}

export function allocateRows(
  arena: Arena,
  dtype: FloatType,
  { tokenOfRow, hasZeroRow }: DispatchPlan,
  columns: number,
): ExpertRows {
  const numRows = tokenOfRow.columns;
  const all = arena.allocate(dtype, [numRows + (hasZeroRow ? 1 : 0), columns]);
  const rows = sliceRows(all, 0, numRows);
  if (hasZeroRow) view(sliceRows(all, numRows, numRows + 1)).fill(0);
  return { rows, all };
}
