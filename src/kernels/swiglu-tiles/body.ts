/**
 * @file The gated activation between codes, for every target: bodies of other kernels, one after
 * the other, over rows that stand in the thread's scratch.
 */
import { defined } from "../../base/errors.ts";
import { roundUp } from "../../base/integers.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import { SCALED_FORMATS, type ScaledFormat } from "../../tensor/scaled-tensor.ts";
import { type KernelImplementation, type KernelTarget, reference, slot } from "../kernel.ts";
import type { RowOperand } from "../launch-rows.ts";
import { bandAt, readBandSlots } from "../quantize-tiles/bands.ts";
import {
  createReferenceDequantizeTiles,
  createReferenceQuantizeTiles,
} from "../quantize-tiles/reference.ts";
import { WASM_DEQUANTIZE_TILES, WASM_QUANTIZE_TILES } from "../quantize-tiles/wasm.ts";
import { X64_DEQUANTIZE_TILES, X64_QUANTIZE_TILES } from "../quantize-tiles/x64.ts";
import { rowImplementations } from "../row-kernel.ts";
import { swigluBackwardProgram, swigluProgram } from "../swiglu/program.ts";
import { createReferenceSwiglu, createReferenceSwigluBackward } from "../swiglu/reference.ts";
import {
  OPEN_ELEMENTS,
  SWIGLU_TILES_AT,
  SWIGLU_TILES_BACKWARD_AT,
  SWIGLU_TILES_ROWS,
} from "./contract.ts";

/** The kernels that steps are bodies of; the best first, as where they are declared. */
const STEPS = {
  quantize: [X64_QUANTIZE_TILES, WASM_QUANTIZE_TILES, reference(createReferenceQuantizeTiles)],
  dequantize: [
    X64_DEQUANTIZE_TILES,
    WASM_DEQUANTIZE_TILES,
    reference(createReferenceDequantizeTiles),
  ],
  swiglu: [...rowImplementations(swigluProgram), reference(createReferenceSwiglu)],
  swigluBackward: [
    ...rowImplementations(swigluBackwardProgram),
    reference(createReferenceSwigluBackward),
  ],
} as const satisfies Record<string, readonly KernelImplementation[]>;
type StepName = keyof typeof STEPS;

const TARGETS: readonly KernelTarget[] = ["x64", "wasm", "reference"];
/** Of a thread's scratch: what the steps themselves want of it. */
const STEP_SCRATCH_BYTES = 2 ** 20;
const F32_BYTES = 4;
const BF16_BYTES = 2;

/** Codes and scales of some rows. */
interface Tiles {
  readonly codesOffset: number;
  readonly codesRowStride: number;
  readonly scalesOffset: number;
  readonly scaleRowStride: number;
  readonly tileRows: number;
  readonly tileColumns: number;
  readonly format: ScaledFormat;
  readonly amaxMin: number;
  readonly powerOfTwo: number;
}

/** Rows of numbers: bytes to the first, elements from one to the next. */
interface Open {
  readonly dtype: "f32" | "bf16";
  readonly offset: number;
  readonly stride: number;
}

type Size = readonly [rows: number, columns: number];

/** Runs bodies of other kernels as parts of a task. */
class Steps {
  /** Scratch that no step uses. */
  readonly free: Span;
  readonly #context: ThreadContext;
  readonly #target: KernelTarget;
  readonly #bodies = new Map<string, KernelBody>();
  readonly #slots = new Float64Array(32);

  constructor(context: ThreadContext, target: KernelTarget) {
    const { byteOffset, byteLength } = context.scratch;
    this.#context = { ...context, scratch: { byteOffset, byteLength: STEP_SCRATCH_BYTES } };
    this.free = {
      byteOffset: byteOffset + STEP_SCRATCH_BYTES,
      byteLength: byteLength - STEP_SCRATCH_BYTES,
    };
    this.#target = target;
  }

  quantize(from: Open, size: Size, to: Tiles): void {
    this.#tiles("quantize", `${from.dtype}.${to.format}`, size, to, [
      to.amaxMin,
      to.powerOfTwo,
      from.offset,
      from.stride,
    ]);
  }

  dequantize(from: Tiles, size: Size, to: Open): void {
    this.#tiles("dequantize", `${from.format}.${to.dtype}`, size, from, [to.offset, to.stride]);
  }

  rows(
    step: "swiglu" | "swigluBackward",
    variant: string,
    [rows, columns]: Size,
    operands: readonly RowOperand[],
  ): void {
    const slots = this.#slots;
    slots[0] = rows;
    slots[1] = columns;
    slots[2] = rows;
    for (const [index, [offset, stride]] of operands.entries()) {
      slots[3 + 2 * index] = offset;
      slots[4 + 2 * index] = stride;
    }
    this.#body(step, variant)(slots, 0, 1);
  }

  /** All tiles of some rows: one band, or rows with scales of their own. */
  #tiles(
    step: StepName,
    variant: string,
    [rows, columns]: Size,
    tiles: Tiles,
    rest: readonly number[],
  ): void {
    const { codesOffset, codesRowStride, scalesOffset, scaleRowStride } = tiles;
    const { tileRows, tileColumns } = tiles;
    const numBands = tileRows === 1 ? rows : 1;
    const slots = this.#slots;
    slots.set([rows, columns, codesOffset, codesRowStride, scalesOffset, scaleRowStride]);
    slots.set([tileRows, tileColumns, 0, 0, 0, numBands, numBands, columns, ...rest], 6);
    this.#body(step, variant)(slots, 0, 1);
  }

  #body(step: StepName, variant: string): KernelBody {
    const key = `${step}/${variant}`;
    const known = this.#bodies.get(key);
    if (known !== undefined) return known;
    const context = this.#context;
    const first = TARGETS.indexOf(this.#target);
    const found = (STEPS[step] as readonly KernelImplementation[]).find(
      ({ target, refusal }) =>
        TARGETS.indexOf(target) >= first && refusal(variant, context) === null,
    );
    const body = defined(found, `a step ${key}`).create(variant, context);
    this.#bodies.set(key, body);
    return body;
  }
}

/** The slots of tiles of single rows, from slot `at` on; those of row `row`. */
function rowTiles(slots: Float64Array, at: number, row: number): Tiles {
  const [codesRowStride, scaleRowStride] = [slot(slots, at + 1), slot(slots, at + 3)];
  return {
    codesOffset: slot(slots, at) + row * codesRowStride,
    codesRowStride,
    scalesOffset: slot(slots, at + 2) + F32_BYTES * row * scaleRowStride,
    scaleRowStride,
    tileRows: 1,
    tileColumns: slot(slots, at + 4),
    format: SCALED_FORMATS[slot(slots, at + 5)]!,
    amaxMin: slot(slots, at + 6),
    powerOfTwo: slot(slots, at + 7),
  };
}

/** The same of tiles of one column: those of a band, whose first row is `row`. */
function bandTiles(slots: Float64Array, at: number, band: number, row: number): Tiles {
  const [codesRowStride, scaleRowStride] = [slot(slots, at + 1), slot(slots, at + 3)];
  return {
    codesOffset: slot(slots, at) + row * codesRowStride,
    codesRowStride,
    scalesOffset: slot(slots, at + 2) + F32_BYTES * band * scaleRowStride,
    scaleRowStride,
    tileRows: SWIGLU_TILES_ROWS,
    tileColumns: 1,
    format: SCALED_FORMATS[slot(slots, at + 4)]!,
    amaxMin: slot(slots, at + 5),
    powerOfTwo: slot(slots, at + 6),
  };
}

/** An operand of f32 from slot `at` on, from row `row` on. */
function rowOperand(slots: Float64Array, at: number, row: number): RowOperand {
  const stride = slot(slots, at + 1);
  return [slot(slots, at) + F32_BYTES * row * stride, stride];
}

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
        "swiglu",
        isWeighted ? "bf16.weighted" : "bf16",
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
  const activation = dGateUp + roundUp(SWIGLU_TILES_ROWS * wide * BF16_BYTES, 64);
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
    "swigluBackward",
    isWeighted ? "bf16.weighted" : "bf16",
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

/** The implementations of a kernel made of steps: where the gated activation itself can run. */
export function swigluTilesOver(create: typeof createSwigluTiles): readonly KernelImplementation[] {
  return TARGETS.map((target): KernelImplementation => {
    const rows = STEPS.swiglu.find((implementation) => implementation.target === target);
    return {
      target,
      refusal: (_variant, context) => defined(rows, target).refusal("bf16", context),
      create: (variant, context) => create(target, variant, context),
    };
  });
}
