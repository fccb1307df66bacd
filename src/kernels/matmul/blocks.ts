/**
 * @file How a matrix product is divided into tasks, whatever runs them.
 *
 * A task is rowBlock × columnBlock of the output over the whole depth. It packs its share of both operands, so a long
 * row block spreads the packing of B over more rows, and a wide column block that of A over more columns; small blocks
 * let threads share evenly. The division never changes a bit of the result.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, isIntegerIn, roundUp } from "../../base/integers.ts";

export interface BlockPlan {
  readonly rowBlock: number;
  readonly columnBlock: number;
}

/** Row blocks are whole tiles of every core: 12 rows (x64), 16 (AMX), 6 (wasm). */
const ROW_UNIT = 48;
/** Column blocks are whole panels of every core. */
const COLUMN_UNIT = 64;
/** Longer row blocks would no longer let their packed rows stay in a second-level cache. */
const MAX_ROW_BLOCK = 528;
const MAX_COLUMN_BLOCK = 2048;
/** Fewer multiply-adds than this are not worth waking another thread for (about 10 µs of one core). */
const MIN_TASK_WORK = 2 ** 19;
/** Tasks for each thread, so that a late one does not keep all others waiting. */
const TASKS_PER_THREAD = 2;

/** Blocks for a product of rows × columns × depth, done `batchCount` times by `numThreads` threads. */
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
  const work = rows * columns * Math.max(depth, 1);
  const mostTasks = Math.max(1, Math.floor(work / MIN_TASK_WORK));
  const share =
    numThreads === 1 ? 1 : ceilDiv(numThreads * TASKS_PER_THREAD, Math.max(1, batchCount));
  const wanted = Math.min(share, mostTasks);
  // Cut the rows first: a row block reads its rows of A once, and every block reads all of B.
  const numRowCuts = Math.min(wanted, Math.max(1, Math.floor(rows / ROW_UNIT)));
  const rowBlock = blockOf(rows, numRowCuts, ROW_UNIT, MAX_ROW_BLOCK);
  const numColumnCuts = ceilDiv(wanted, ceilDiv(Math.max(rows, 1), rowBlock));
  return { rowBlock, columnBlock: blockOf(columns, numColumnCuts, COLUMN_UNIT, MAX_COLUMN_BLOCK) };
}

/** The length of `numCuts` even blocks of `total`, a multiple of `unit`, at most `most`. */
function blockOf(total: number, numCuts: number, unit: number, most: number): number {
  const cuts = Math.max(numCuts, ceilDiv(total, most));
  return Math.max(unit, roundUp(ceilDiv(total, cuts), unit));
}
