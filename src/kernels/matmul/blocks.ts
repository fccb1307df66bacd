/** @file How a product is cut into tasks: blocks of rows and columns, for all targets alike. */
import { ceilDiv, roundUp } from "../../base/integers.ts";

export interface BlockPlanInput {
  readonly rows: number;
  readonly columns: number;
  readonly depth: number;
  readonly numThreads: number;
  readonly batchCount: number;
}

export interface BlockPlan {
  readonly rowBlock: number;
  readonly columnBlock: number;
}

/** Choose block sizes; every block is a multiple of 48 rows or 64 columns but the last. */
export function planBlocks(input: BlockPlanInput): BlockPlan {
  const { rows, columns, numThreads, batchCount } = input;
  const share = batchCount >= numThreads ? 1 : numThreads;
  const columnBlock = Math.max(64, Math.min(512, roundUp(ceilDiv(columns, share), 64)));
  return { rowBlock: Math.max(48, roundUp(rows, 48)), columnBlock };
}
