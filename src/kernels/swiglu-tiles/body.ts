/**
 * @file The gated activation between codes, for every target: bodies of other kernels, one after
 * the other, over rows that stand in the thread's scratch.
 */
import { roundUp } from "../../base/integers.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import { type KernelTarget, slot } from "../kernel.ts";
import { bandAt, readBandSlots } from "../quantize-tiles/bands.ts";
import { OPEN_ELEMENTS, TILE_ROWS_MOST } from "../tile-slots.ts";
import {
  BF16_BYTES,
  bandTiles,
  F32_BYTES,
  type Open,
  rowOperand,
  rowTiles,
  Steps,
} from "../tile-steps.ts";
import { SWIGLU_TILES_AT, SWIGLU_TILES_BACKWARD_AT } from "./contract.ts";

export function createSwigluTiles(
  target: KernelTarget,
  variant: string,
  context: ThreadContext,
): KernelBody {
  const steps = new Steps(context, target);
  const isWeighted = variant === "weighted";
  const at = SWIGLU_TILES_AT;
  return (slots, firstTask, endTask) => {
    const [rows, columns] = [slot(slots, at.rows), slot(slots, at.columns)];
    const rowsPerTask = slot(slots, at.rowsPerTask);
    const activation = { dtype: "bf16", offset: steps.free.byteOffset, stride: columns } as const;
    for (let task = firstTask; task < endTask; task++) {
      const row = task * rowsPerTask;
      const count = Math.min(rowsPerTask, rows - row);
      const [gate, up] = [at.gateOffset, at.upOffset].map((from) => rowOperand(slots, from, row));
      const weight = isWeighted ? [rowOperand(slots, at.weightOffset, row)] : [];
      const gateUp = { dtype: "f32", offset: gate![0], stride: gate![1] } as const;
      steps.quantize(gateUp, [count, 2 * columns], rowTiles(slots, at.keptCodesOffset, row));
      steps.rows(
        isWeighted ? "swiglu/bf16.weighted" : "swiglu/bf16",
        [count, columns],
        [gate!, up!, ...weight, [activation.offset, columns]],
      );
      steps.quantize(activation, [count, columns], rowTiles(slots, at.outCodesOffset, row));
    }
  };
}

export function createSwigluTilesBackward(
  target: KernelTarget,
  variant: string,
  context: ThreadContext,
): KernelBody {
  const steps = new Steps(context, target);
  const isWeighted = variant === "weighted";
  const at = SWIGLU_TILES_BACKWARD_AT;
  return (slots, firstTask, endTask) => {
    const bands = readBandSlots(slots);
    const { columns } = bands;
    const openRows = Math.max(1, Math.floor(OPEN_ELEMENTS / (2 * columns)));
    const places = placesOf(steps.free, columns, openRows);
    for (let band = firstTask; band < endTask; band++) {
      const { firstRow, endRow } = bandAt(context.memory, bands, band);
      for (let row = firstRow; row < endRow; row += openRows) {
        backwardRows(steps, slots, {
          row,
          count: Math.min(openRows, endRow - row),
          columns,
          places,
          firstRow,
          isWeighted,
        });
      }
      const count = endRow - firstRow;
      if (count <= 0) continue;
      const across = bandTiles(slots, at.acrossCodesOffset, band, firstRow);
      steps.quantize(places.dGateUp, [count, 2 * columns], across);
      const input = bandTiles(slots, at.inputCodesOffset, band, firstRow);
      steps.quantize(places.activation, [count, columns], input);
    }
  };
}

/** Where rows stand between steps. */
interface Places {
  /** A few rows of it. */
  readonly gateUp: Open;
  /** Those of a band. */
  readonly dGateUp: Open;
  readonly activation: Open;
}

function placesOf({ byteOffset }: Span, columns: number, openRows: number): Places {
  const wide = 2 * columns;
  const dGateUp = byteOffset + roundUp(openRows * wide * F32_BYTES, 64);
  const activation = dGateUp + roundUp(TILE_ROWS_MOST * wide * BF16_BYTES, 64);
  return {
    gateUp: { dtype: "f32", offset: byteOffset, stride: wide },
    dGateUp: { dtype: "bf16", offset: dGateUp, stride: wide },
    activation: { dtype: "bf16", offset: activation, stride: columns },
  };
}

/** Some rows of a band: opened, differentiated, and their gradients quantised along. */
function backwardRows(
  steps: Steps,
  slots: Float64Array,
  of: {
    readonly row: number;
    readonly count: number;
    readonly columns: number;
    readonly places: Places;
    readonly firstRow: number;
    readonly isWeighted: boolean;
  },
): void {
  const { row, count, columns, places, firstRow, isWeighted } = of;
  const at = SWIGLU_TILES_BACKWARD_AT;
  const { gateUp } = places;
  const wide = 2 * columns;
  const dGateUp = {
    ...places.dGateUp,
    offset: places.dGateUp.offset + BF16_BYTES * wide * (row - firstRow),
  };
  const activation = places.activation.offset + BF16_BYTES * columns * (row - firstRow);
  const weights = isWeighted
    ? [rowOperand(slots, at.weightOffset, row), rowOperand(slots, at.dWeightOffset, row)]
    : [];
  steps.dequantize(rowTiles(slots, at.gateUpCodesOffset, row), [count, wide], gateUp);
  steps.rows(
    isWeighted ? "swigluBackward/bf16.weighted" : "swigluBackward/bf16",
    [count, columns],
    [
      [gateUp.offset, wide],
      [gateUp.offset + F32_BYTES * columns, wide],
      ...weights,
      rowOperand(slots, at.dOutOffset, row),
      [dGateUp.offset, wide],
      [dGateUp.offset + BF16_BYTES * columns, wide],
      [activation, columns],
    ],
  );
  steps.quantize(dGateUp, [count, wide], rowTiles(slots, at.alongCodesOffset, row));
}
