/**
 * @file Bands: the rows that share a row of scales, and how launches over tiles are divided.
 *
 * A task is `bandsPerTask` bands by `columnsPerTask` columns; the division never changes a bit of
 * the result. With groups by offsets some bands are empty (tensor/scaled-tensor.ts).
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, floorDiv, roundUp } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Device } from "../../device/device.ts";
import type { ScaledTensor } from "../../tensor/scaled-tensor.ts";
import { assertMatrix, assertOffsets } from "../door.ts";
import { slot, slotIndex } from "../kernel.ts";

/** The first slots of a launch over tiles: the scaled tensor whose bands are walked. */
export const BAND_SLOTS = [
  "rows",
  "columns",
  "codesOffset",
  "codesRowStride",
  "scalesOffset",
  "scaleRowStride",
  "tileRows",
  "tileColumns",
  /** Rows of each of the equal groups, or 0. */
  "groupRows",
  /** Of groups by offsets, or 0. */
  "numGroups",
  "groupOffsets",
  "numBands",
  "bandsPerTask",
  "columnsPerTask",
] as const;

const AT = slotIndex(BAND_SLOTS);

/** The values of `BAND_SLOTS`, read by name. */
export type BandSlots = Readonly<Record<(typeof BAND_SLOTS)[number], number>>;

/** Elements of a task: some ten microseconds of work, beside which a call of it is little. */
const TASK_ELEMENTS = 65536;
/** Column blocks are multiples of it: whole cache lines of codes, and whole pairs of E5M6. */
const COLUMN_UNIT = 64;

/** The slots that describe `scaled`, in order, and the number of tasks over it. */
export function planBands(scaled: ScaledTensor): { slots: BandSlots; numTasks: number } {
  const { rows, columns, tileRows, tileColumns } = scaled;
  const isWide = tileColumns >= columns;
  // Whole tiles in the columns of a task, and pairs of packed codes.
  const unit = isWide ? columns : tileColumns * (tileColumns % 2 === 0 ? 1 : 2);
  const bandRows = Math.max(1, Math.min(tileRows, rows));
  const wanted = roundUp(ceilDiv(TASK_ELEMENTS, bandRows), COLUMN_UNIT);
  const columnsPerTask = Math.max(1, Math.min(roundUp(wanted, Math.max(1, unit)), columns));
  const bandsPerTask = ceilDiv(TASK_ELEMENTS, bandRows * columnsPerTask);
  const slots = bandSlots(scaled, { bandsPerTask, columnsPerTask });
  const numTasks =
    rows === 0 || columns === 0
      ? 0
      : ceilDiv(slots.numBands, bandsPerTask) * ceilDiv(columns, columnsPerTask);
  return { slots, numTasks };
}

/** The slots that describe `scaled`, in order, under a given division. */
export function bandSlots(
  scaled: ScaledTensor,
  division: Pick<BandSlots, "bandsPerTask" | "columnsPerTask">,
): BandSlots {
  const { rows, columns, codes, scales, tileRows, tileColumns, groups } = scaled;
  const offsets = groups.kind === "offsets" ? groups.offsets : null;
  return {
    rows,
    columns,
    codesOffset: codes.byteOffset,
    codesRowStride: codes.rowStride,
    scalesOffset: scales.byteOffset,
    scaleRowStride: scales.rowStride,
    tileRows,
    tileColumns,
    groupRows: groups.kind === "equal" ? groups.rows : 0,
    numGroups: offsets === null ? 0 : offsets.columns - 1,
    groupOffsets: offsets === null ? 0 : offsets.byteOffset,
    numBands: scales.rows,
    bandsPerTask: division.bandsPerTask,
    columnsPerTask: division.columnsPerTask,
  };
}

/** Groups by offsets, if there are any, are well formed. */
export function assertRowGroups(device: Device, name: string, scaled: ScaledTensor): void {
  const { groups, rows } = scaled;
  if (groups.kind !== "offsets") return;
  const { offsets } = groups;
  assertMatrix(device, `${name} offsets`, offsets, ["i32"], 1, offsets.columns);
  assert(offsets.columns >= 2, `${name}: offsets hold ${offsets.columns} entries; at least 2`);
  assertOffsets(`${name} offsets`, offsets, rows);
}

/** A band's rows, or an empty range. */
export interface Band {
  readonly firstRow: number;
  readonly endRow: number;
}

/** The rows of band `band`. */
export function bandAt(memory: CpuMemory, slots: BandSlots, band: number): Band {
  const { rows, tileRows, groupRows, numGroups, groupOffsets } = slots;
  if (numGroups > 0) {
    const offsets = memory.i32;
    const at = groupOffsets / 4;
    const baseOf = (group: number): number => floorDiv(offsets[at + group]!, tileRows) + group;
    let group = 0;
    while (group + 1 < numGroups && baseOf(group + 1) <= band) group++;
    const firstRow = offsets[at + group]! + (band - baseOf(group)) * tileRows;
    return { firstRow, endRow: Math.min(firstRow + tileRows, offsets[at + group + 1]!) };
  }
  if (groupRows > 0) {
    const bandsPerGroup = ceilDiv(groupRows, tileRows);
    const group = floorDiv(band, bandsPerGroup);
    const start = group * groupRows;
    const firstRow = start + (band - group * bandsPerGroup) * tileRows;
    return { firstRow, endRow: Math.min(firstRow + tileRows, start + groupRows) };
  }
  return { firstRow: band * tileRows, endRow: Math.min((band + 1) * tileRows, rows) };
}

/** The scale row of `row`; the inverse of `bandAt` for tensors without groups by offsets. */
export function scaleRowAt({ tileRows, groupRows }: BandSlots, row: number): number {
  if (groupRows === 0) return floorDiv(row, tileRows);
  const group = floorDiv(row, groupRows);
  return group * ceilDiv(groupRows, tileRows) + floorDiv(row - group * groupRows, tileRows);
}

/** A rectangle of a band: the columns of one task. */
export interface Patch {
  readonly band: number;
  readonly firstRow: number;
  readonly endRow: number;
  readonly firstColumn: number;
  readonly endColumn: number;
}

/** Which tasks of a launch are walked. */
export interface PatchWalk {
  readonly firstTask: number;
  readonly endTask: number;
  /** Neighbouring bands of one row come as one patch, with the number of the first. */
  readonly joinsRows?: boolean;
}

/** Visit the bands that are not empty, cut to the columns of their tasks. */
export function eachPatch(
  memory: CpuMemory,
  grid: BandSlots,
  { firstTask, endTask, joinsRows = false }: PatchWalk,
  visit: (patch: Patch) => void,
): void {
  const areRows = joinsRows && grid.tileRows === 1 && grid.numGroups === 0;
  const { columns, columnsPerTask, numBands, bandsPerTask } = grid;
  const numColumnBlocks = ceilDiv(columns, columnsPerTask);
  for (let task = firstTask; task < endTask; task++) {
    const bandBlock = floorDiv(task, numColumnBlocks);
    const firstColumn = (task - bandBlock * numColumnBlocks) * columnsPerTask;
    const endColumn = Math.min(firstColumn + columnsPerTask, columns);
    const endBand = Math.min((bandBlock + 1) * bandsPerTask, numBands);
    const firstBand = bandBlock * bandsPerTask;
    if (areRows) {
      visit({ band: firstBand, firstRow: firstBand, endRow: endBand, firstColumn, endColumn });
      continue;
    }
    for (let band = firstBand; band < endBand; band++) {
      const { firstRow, endRow } = bandAt(memory, grid, band);
      if (firstRow < endRow) visit({ band, firstRow, endRow, firstColumn, endColumn });
    }
  }
}

/** The first slots of a launch, by name. */
export function readBandSlots(slots: Float64Array): BandSlots {
  return {
    rows: slot(slots, AT.rows),
    columns: slot(slots, AT.columns),
    codesOffset: slot(slots, AT.codesOffset),
    codesRowStride: slot(slots, AT.codesRowStride),
    scalesOffset: slot(slots, AT.scalesOffset),
    scaleRowStride: slot(slots, AT.scaleRowStride),
    tileRows: slot(slots, AT.tileRows),
    tileColumns: slot(slots, AT.tileColumns),
    groupRows: slot(slots, AT.groupRows),
    numGroups: slot(slots, AT.numGroups),
    groupOffsets: slot(slots, AT.groupOffsets),
    numBands: slot(slots, AT.numBands),
    bandsPerTask: slot(slots, AT.bandsPerTask),
    columnsPerTask: slot(slots, AT.columnsPerTask),
  };
}
