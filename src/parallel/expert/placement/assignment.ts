/**
 * @file The assignment problem: n workers, n jobs, the cheapest matching. O(n³).
 *
 * The Hungarian method with potentials, one row at a time: each new row grows a tree of shortest
 * augmenting paths until it meets a free column. Among equally cheap matchings the choice depends
 * on the costs alone.
 *
 * Source: Kuhn 1955, Munkres 1957; in the form of Jonker and Volgenant, Computing 38 (1987).
 */
import { defined } from "../../../base/errors.ts";

/** `cost[row][column]`; the column of each row. */
export function assignCheapest(cost: readonly (readonly number[])[]): number[] {
  const count = cost.length;
  // Column 0 and row 0 are a sentinel: the row being placed starts there.
  const rowOfColumn = new Array<number>(count + 1).fill(0);
  const rowPotential = new Float64Array(count + 1);
  const columnPotential = new Float64Array(count + 1);
  for (let row = 1; row <= count; row++) {
    rowOfColumn[0] = row;
    const cameFrom = growTree(cost, { rowOfColumn, rowPotential, columnPotential });
    let column = cameFrom.free;
    while (column !== 0) {
      const before = cameFrom.column[column]!;
      rowOfColumn[column] = rowOfColumn[before]!;
      column = before;
    }
  }
  const columnOfRow = new Array<number>(count).fill(-1);
  for (let column = 1; column <= count; column++) {
    columnOfRow[defined(rowOfColumn[column], "a row") - 1] = column - 1;
  }
  return columnOfRow;
}

interface Matching {
  readonly rowOfColumn: readonly number[];
  readonly rowPotential: Float64Array;
  readonly columnPotential: Float64Array;
}

/** Shortest paths from the row in column 0 to the nearest free column; moves the potentials. */
function growTree(
  cost: readonly (readonly number[])[],
  { rowOfColumn, rowPotential, columnPotential }: Matching,
): { readonly free: number; readonly column: Int32Array } {
  const count = cost.length;
  const cameFrom = new Int32Array(count + 1);
  const slack = new Float64Array(count + 1).fill(Number.POSITIVE_INFINITY);
  const inTree = new Uint8Array(count + 1);
  let column = 0;
  while (rowOfColumn[column] !== 0) {
    inTree[column] = 1;
    const row = rowOfColumn[column]!;
    let nearest = 0;
    let step = Number.POSITIVE_INFINITY;
    for (let other = 1; other <= count; other++) {
      if (inTree[other] === 1) continue;
      const reduced = cost[row - 1]![other - 1]! - rowPotential[row]! - columnPotential[other]!;
      if (reduced < slack[other]!) {
        slack[other] = reduced;
        cameFrom[other] = column;
      }
      if (slack[other]! < step) {
        step = slack[other]!;
        nearest = other;
      }
    }
    for (let other = 0; other <= count; other++) {
      if (inTree[other] === 1) {
        rowPotential[rowOfColumn[other]!]! += step;
        columnPotential[other]! -= step;
      } else slack[other]! -= step;
    }
    column = nearest;
  }
  return { free: column, column: cameFrom };
}
