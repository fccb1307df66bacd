/**
 * @file The plan of a dispatch: where each chosen (token, expert) pair stands when rows are sorted
 * by expert.
 *
 *     offsets_G1      first row of each expert; the last entry is T·K
 *     tokenOfRow_R    token of each row; R = T·K, rows of one expert in the order of their tokens
 *     rowOfChoice_TK  the row of each choice
 *
 * A counting sort, stable in the tokens, on one thread: two passes over T·K numbers. No two
 * operands overlap.
 */
import { assert } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { isContiguous, type Tensor } from "../../tensor/tensor.ts";
import { assertIndexes, assertMatrix } from "../door.ts";
import { slotIndex } from "../kernel.ts";

export const PLAN_DISPATCH_SLOTS = [
  "tokens",
  "chosen",
  "experts",
  "choice",
  "offsets",
  "tokenOfRow",
  "rowOfChoice",
] as const;
export const PLAN_DISPATCH_AT: Record<(typeof PLAN_DISPATCH_SLOTS)[number], number> =
  slotIndex(PLAN_DISPATCH_SLOTS);

export interface PlanDispatchCall {
  readonly choice: Tensor<"i32">;
  readonly offsets: Tensor<"i32">;
  readonly tokenOfRow: Tensor<"i32">;
  readonly rowOfChoice: Tensor<"i32">;
}

/** Sort the choices [T, K] by expert. */
export function planDispatch(device: Device, call: PlanDispatchCall): void {
  const { choice, offsets, tokenOfRow, rowOfChoice } = call;
  const { rows: tokens, columns: chosen } = choice;
  const experts = offsets.columns - 1;
  assert(experts >= 1, `planDispatch: offsets hold ${offsets.columns} entries; at least 2`);
  assertMatrix(device, "planDispatch choice", choice, ["i32"], tokens, chosen);
  assertMatrix(device, "planDispatch offsets", offsets, ["i32"], 1, experts + 1);
  assertMatrix(device, "planDispatch tokenOfRow", tokenOfRow, ["i32"], 1, tokens * chosen);
  assertMatrix(device, "planDispatch rowOfChoice", rowOfChoice, ["i32"], tokens, chosen);
  assert(isContiguous(choice) && isContiguous(rowOfChoice), "planDispatch: contiguous operands");
  assertIndexes("planDispatch choice", choice, 0, experts);
  device.launch(
    "planDispatch/i32",
    [
      tokens,
      chosen,
      experts,
      choice.byteOffset,
      offsets.byteOffset,
      tokenOfRow.byteOffset,
      rowOfChoice.byteOffset,
    ],
    1,
  );
}
