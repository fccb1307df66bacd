/**
 * @file One hop of an exchange: rows to the members of a communicator, and sums of rows back.
 */
import { assert } from "../../../base/errors.ts";
import { decodeBf16, encodeBf16 } from "../../../numerics/bf16.ts";
import type { Arena } from "../../../tensor/arena.ts";
import { DTYPE_BYTES } from "../../../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Communicator } from "../../communicator/communicator.ts";
import type { Work } from "../../communicator/work.ts";

/** Rows of one hop: `sent[i]` goes to member i, `receiveCounts[i]` rows come from it. */
export interface Hop {
  readonly communicator: Communicator;
  readonly sent: readonly (readonly number[])[];
  readonly receiveCounts: readonly number[];
}

/** What results are summed in; bf16 in f32, rounded once a hop. */
export type SumType = "bf16" | "f32" | "f64";

/** Rows of one kind, and what becomes of them. */
export interface SummedRows {
  /** A row for each received token. */
  readonly rows: Tensor<SumType>;
  /** A row for each own token, overwritten. */
  readonly out: Tensor<SumType>;
}

/** Memory for the time of a hop, and the most rows that go in one message. */
export interface HopMeans {
  readonly scratch: Arena;
  readonly chunkRows: number;
}

/**
 * Rows of each source that members want; theirs come into the targets, in the order of members. A
 * chunk travels while the next is gathered, and is still in a cache when it is sent.
 */
export function* moveRows(
  hop: Hop,
  sources: readonly Tensor[],
  targets: readonly Tensor[],
  { scratch, chunkRows }: HopMeans,
): Work<void> {
  const { communicator, sent, receiveCounts } = hop;
  using _mark = scratch.mark();
  const longest = Math.max(...sent.map(({ length }) => length), ...receiveCounts);
  yield communicator.group(() => {
    for (let first = 0; first < longest; first += chunkRows) {
      const chunk = { first, end: first + chunkRows };
      for (const [index, source] of sources.entries()) {
        moveChunk(hop, chunk, { source, target: targets[index]!, scratch });
      }
    }
  });
}

/** Rows [first, end) of what goes to each member, and of what comes. */
function moveChunk(
  { communicator, sent, receiveCounts }: Hop,
  { first, end }: { readonly first: number; readonly end: number },
  means: { readonly source: Tensor; readonly target: Tensor; readonly scratch: Arena },
): void {
  const { source, target, scratch } = means;
  let start = 0;
  for (const [member, count] of receiveCounts.entries()) {
    const rows = sent[member]!.slice(first, end);
    const last = Math.min(end, count);
    const place = last > first ? sliceRows(target, start + first, start + last) : null;
    start += count;
    if (member === communicator.rank) {
      if (place !== null) gatherInto(source, rows, place);
      continue;
    }
    if (place !== null) communicator.receive(place, member);
    if (rows.length === 0) continue;
    const packed = scratch.allocate(source.dtype, [rows.length, source.columns]);
    gatherInto(source, rows, packed);
    communicator.send(packed, member);
  }
}

/** Memory for `rows` rows like those of each source. */
export function allocateLike(
  arena: Arena,
  sources: readonly Tensor[],
  rows: number,
): readonly Tensor[] {
  return sources.map(({ dtype, columns }) => arena.allocate(dtype, [rows, columns]));
}

function gatherInto(source: Tensor, rows: readonly number[], out: Tensor): void {
  const { columns } = source;
  const from: Values = view(source);
  const to: Values = view(out);
  let next = 0;
  for (const row of rows) {
    to.set(from.subarray(row * columns, (row + 1) * columns), next);
    next += columns;
  }
}

type Values = Float32Array | Float64Array | Uint16Array | Uint8Array | Int32Array;

/** A hop in reverse: rows go back to where they came from and are added to their source row. */
export function* addBack(
  { communicator, sent, receiveCounts }: Hop,
  parts: readonly SummedRows[],
  scratch: Arena,
): Work<void> {
  using _mark = scratch.mark();
  const numBack = sumOf(sent.map(({ length }) => length));
  const back = parts.map(({ rows: { dtype, columns } }) =>
    scratch.allocate(dtype, [numBack, columns]),
  );
  yield communicator.group(() => {
    for (const [index, { rows }] of parts.entries()) {
      communicator.allToAll({
        source: rows,
        sendCounts: receiveCounts.map((count) => count * rows.columns),
        target: back[index]!,
        receiveCounts: sent.map(({ length }) => length * rows.columns),
      });
    }
  });
  for (const [index, { out }] of parts.entries()) sumRows(back[index]!, sent.flat(), out);
}

/** out[t] = Σ rows[i] over the i with rowOf[i] = t, in the order of i. */
function sumRows(rows: Tensor<SumType>, rowOf: readonly number[], out: Tensor<SumType>): void {
  assert(rows.columns === out.columns && rows.dtype === out.dtype, "rows like those of the sum");
  if (out.dtype === "bf16") sumBf16(rows as Tensor<"bf16">, rowOf, out as Tensor<"bf16">);
  else {
    const sums = view(out as Tensor<"f32" | "f64">);
    sums.fill(0);
    addRows(view(rows as Tensor<"f32" | "f64">), rowOf, sums, out.columns);
  }
}

function sumBf16(rows: Tensor<"bf16">, rowOf: readonly number[], out: Tensor<"bf16">): void {
  const { columns } = out;
  const sums = new Float32Array(out.rows * columns);
  const values = new Float32Array(rows.rows * columns);
  decodeBf16(view(rows), values);
  addRows(values, rowOf, sums, columns);
  encodeBf16(sums, view(out));
}

function addRows(
  values: Float32Array | Float64Array,
  rowOf: readonly number[],
  sums: Float32Array | Float64Array,
  columns: number,
): void {
  for (const [place, row] of rowOf.entries()) {
    const from = place * columns;
    const to = row * columns;
    for (let column = 0; column < columns; column++) {
      sums[to + column]! += values[from + column]!;
    }
  }
}

/** Bytes of one row of all parts. */
export function rowBytesOf(parts: readonly Tensor[]): number {
  return sumOf(parts.map(({ dtype, columns }) => DTYPE_BYTES[dtype] * columns));
}

export function sumOf(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0);
}
