/**
 * @file How a matrix product is divided into tasks, whatever runs them.
 *
 * A task is rowBlock × columnBlock of the output over the whole depth. It packs its share of both
 * operands, rows · numColumnBlocks + columns · numRowBlocks lanes in all, so the longer side is cut
 * first. Several tasks a thread let threads of unequal luck share evenly. The division never
 * changes a bit of the result.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, isIntegerIn, roundUp } from "../../base/integers.ts";

export interface BlockPlan {
  readonly rowBlock: number;
  readonly columnBlock: number;
}

/** Blocks are whole tiles of the widest core (32×32); others end a block with a smaller tile. */
export const ROW_UNIT = 32;
const COLUMN_UNIT = 64;
/** Cores divide blocks further; longer ones would gain nothing. */
export const MAX_ROW_BLOCK = 4096;
const MAX_COLUMN_BLOCK = 4096;
/** Fewer multiply-adds (about 5 µs of one core) are not worth waking another thread for. */
const MIN_TASK_WORK = 2 ** 18;
/** Fewer rows take as long as this many: they wait for the other operand to come from memory. */
const MEMORY_BOUND_ROWS = 16;
const TASKS_PER_THREAD = 2;

/** Blocks for a product of rows × columns × depth, done `batchCount` times by `numThreads`. */
export function planBlocks(product: {
  readonly rows: number;
  readonly columns: number;
  readonly depth: number;
  readonly numThreads: number;
  readonly batchCount?: number;
}): BlockPlan {
  const { rows, columns, depth, numThreads, batchCount = 1 } = product;
  assert(isIntegerIn(rows, 0, 2 ** 40), `rows (${rows}) must be a whole number`);
  assert(isIntegerIn(columns, 0, 2 ** 40), `columns (${columns}) must be a whole number`);
  assert(isIntegerIn(numThreads, 1, 2 ** 16), `numThreads (${numThreads}) must be at least 1`);
  const work = Math.max(rows, MEMORY_BOUND_ROWS) * columns * depth;
  const mostTasks = Math.max(1, Math.floor(work / MIN_TASK_WORK));
  const share = ceilDiv(numThreads * TASKS_PER_THREAD, Math.max(1, batchCount));
  const wanted = numThreads === 1 ? 1 : Math.min(share, mostTasks);
  let best: BlockPlan | undefined;
  let leastCost = Number.POSITIVE_INFINITY;
  for (let rowCuts = 1; rowCuts <= wanted; rowCuts++) {
    const rowBlock = blockOf(rows, rowCuts, ROW_UNIT, MAX_ROW_BLOCK);
    const numRowBlocks = ceilDiv(rows, rowBlock);
    const columnCuts = ceilDiv(wanted, Math.max(1, numRowBlocks));
    const columnBlock = blockOf(columns, columnCuts, COLUMN_UNIT, MAX_COLUMN_BLOCK);
    const numColumnBlocks = ceilDiv(columns, columnBlock);
    // Packed lanes, and first of all enough tasks.
    const missing = Math.max(0, wanted - numRowBlocks * numColumnBlocks);
    const cost = (rows * numColumnBlocks + columns * numRowBlocks) * (1 + missing);
    if (best === undefined || cost < leastCost) {
      best = { rowBlock, columnBlock };
      leastCost = cost;
    }
  }
  assert(best !== undefined, "at least one plan was tried");
  return best;
}

/** The length of `numCuts` even blocks of `total`: a multiple of `unit`, at most `most`. */
function blockOf(total: number, numCuts: number, unit: number, most: number): number {
  const cuts = Math.max(numCuts, ceilDiv(total, most));
  return Math.max(unit, roundUp(ceilDiv(total, cuts), unit));
}
