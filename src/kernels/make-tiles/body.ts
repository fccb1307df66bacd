/** @file Tiles of one source that is read once, for every target: steps over rows in scratch. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { type KernelTarget, slot } from "../kernel.ts";
import { bandAt, readBandSlots } from "../quantize-tiles/bands.ts";
import {
  BF16_BYTES,
  bandTiles,
  F32_BYTES,
  type Open,
  rowOperand,
  rowTiles,
  Steps,
} from "../tile-steps.ts";
import { MAKE_TILES_AT as AT } from "./contract.ts";

export function createMakeTiles(
  target: KernelTarget,
  variant: string,
  context: ThreadContext,
): KernelBody {
  const steps = new Steps(context, target);
  const [of, made] = variant.split(".") as [Open["dtype"] | "norm", "along" | "across" | "both"];
  const open = of === "norm" ? normedRows(steps) : rowsOf(of);
  return (slots, firstTask, endTask) => {
    const bands = readBandSlots(slots);
    const { columns, rows } = bands;
    const rowsPerTask = slot(slots, AT.rowsPerTask);
    for (let task = firstTask; task < endTask; task++) {
      const { firstRow, endRow } =
        made === "along"
          ? { firstRow: task * rowsPerTask, endRow: Math.min((task + 1) * rowsPerTask, rows) }
          : bandAt(context.memory, bands, task);
      const count = endRow - firstRow;
      if (count <= 0) continue;
      const from = open(slots, firstRow, [count, columns]);
      if (made !== "across") {
        steps.quantize(from, [count, columns], rowTiles(slots, AT.alongCodesOffset, firstRow));
      }
      if (made !== "along") {
        const across = bandTiles(slots, AT.acrossCodesOffset, task, firstRow);
        steps.quantize(from, [count, columns], across);
      }
    }
  };
}

/** Where some rows of what is quantised stand. */
type OpenRows = (
  slots: Float64Array,
  row: number,
  size: readonly [rows: number, columns: number],
) => Open;

/** The source's own. */
function rowsOf(dtype: Open["dtype"]): OpenRows {
  const bytes = dtype === "f32" ? F32_BYTES : BF16_BYTES;
  return (slots, row) => {
    const stride = slot(slots, AT.xStride);
    return { dtype, offset: slot(slots, AT.xOffset) + bytes * row * stride, stride };
  };
}

/** Those of the norm, which is computed. */
function normedRows(steps: Steps): OpenRows {
  const { byteOffset } = steps.free;
  return (slots, row, [count, columns]) => {
    const x = rowOperand(slots, AT.xOffset, row);
    const gain = rowOperand(slots, AT.gainOffset, 0);
    const scalars = [slot(slots, AT.epsilon), 1 / columns];
    steps.rows("rmsNorm/bf16", [count, columns], [x, gain, [byteOffset, columns]], scalars);
    return { dtype: "bf16", offset: byteOffset, stride: columns };
  };
}
