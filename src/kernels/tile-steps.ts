/**
 * @file Kernels made of others: bodies of quantisation and of row kernels, one after the other,
 * over rows that stand in the thread's scratch in between. One thing for every target.
 */
import { defined } from "../base/errors.ts";
import type { KernelBody, Span, ThreadContext } from "../device/program.ts";
import { SCALED_FORMATS } from "../tensor/scaled-tensor.ts";
import {
  type KernelImplementation,
  type KernelTarget,
  reference,
  slot,
  slotIndex,
} from "./kernel.ts";
import type { RowOperand } from "./launch-rows.ts";
import { BAND_SLOTS, type BandSlots } from "./quantize-tiles/bands.ts";
import {
  createReferenceDequantizeTiles,
  createReferenceQuantizeTiles,
} from "./quantize-tiles/reference.ts";
import { WASM_DEQUANTIZE_TILES, WASM_QUANTIZE_TILES } from "./quantize-tiles/wasm.ts";
import { X64_DEQUANTIZE_TILES, X64_QUANTIZE_TILES } from "./quantize-tiles/x64.ts";
import { rmsNormProgram } from "./rms-norm/program.ts";
import { createReferenceRmsNorm } from "./rms-norm/reference.ts";
import { rowImplementations } from "./row-kernel.ts";
import { swigluBackwardProgram, swigluProgram } from "./swiglu/program.ts";
import { createReferenceSwiglu, createReferenceSwigluBackward } from "./swiglu/reference.ts";
import { TILE_ROWS_MOST } from "./tile-slots.ts";

type StepName = "quantize" | "dequantize" | "swiglu" | "swigluBackward" | "rmsNorm";

/** The kernels that steps are bodies of; the best first, as where they are declared. */
const STEPS: Readonly<Record<StepName, readonly KernelImplementation[]>> = {
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
  rmsNorm: [...rowImplementations(rmsNormProgram), reference(createReferenceRmsNorm)],
};

const AT: Readonly<Record<keyof BandSlots, number>> = slotIndex(BAND_SLOTS);
const TARGETS: readonly KernelTarget[] = ["x64", "wasm", "reference"];
/** Of a thread's scratch: what the steps themselves want of it. */
const STEP_SCRATCH_BYTES = 2 ** 20;
export const F32_BYTES = 4;
export const BF16_BYTES = 2;

/** Codes and scales of some rows. */
export interface Tiles {
  readonly codesOffset: number;
  readonly codesRowStride: number;
  readonly scalesOffset: number;
  readonly scaleRowStride: number;
  readonly tileRows: number;
  readonly tileColumns: number;
  /** Its place in SCALED_FORMATS. */
  readonly format: number;
  readonly amaxMin: number;
  readonly powerOfTwo: number;
}

/** Rows of numbers: bytes to the first, elements from one to the next. */
export interface Open {
  readonly dtype: "f32" | "bf16";
  readonly offset: number;
  readonly stride: number;
}

type Size = readonly [rows: number, columns: number];

/** Row kernels that can be steps, with their variants. */
export type RowStep = "rmsNorm/bf16" | `${"swiglu" | "swigluBackward"}/bf16${"" | ".weighted"}`;

/** Runs bodies of other kernels as parts of a task. */
export class Steps {
  /** Scratch that no step uses. */
  readonly free: Span;
  readonly #context: ThreadContext;
  readonly #target: KernelTarget;
  /** By `tileStep`, and by name: the fewer words a step takes, the better. */
  readonly #tileBodies: (KernelBody | undefined)[] = [];
  readonly #rowBodies = new Map<RowStep, KernelBody>();
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

  quantize({ dtype, offset, stride }: Open, size: Size, to: Tiles): void {
    const slots = this.#slots;
    slots[BAND_SLOTS.length] = to.amaxMin;
    slots[BAND_SLOTS.length + 1] = to.powerOfTwo;
    slots[BAND_SLOTS.length + 2] = offset;
    slots[BAND_SLOTS.length + 3] = stride;
    this.#tiles("quantize", dtype, size, to);
  }

  dequantize(from: Tiles, size: Size, { dtype, offset, stride }: Open): void {
    const slots = this.#slots;
    slots[BAND_SLOTS.length] = offset;
    slots[BAND_SLOTS.length + 1] = stride;
    this.#tiles("dequantize", dtype, size, from);
  }

  rows(
    step: RowStep,
    [rows, columns]: Size,
    operands: readonly RowOperand[],
    scalars: readonly number[] = [],
  ): void {
    const slots = this.#slots;
    slots[0] = rows;
    slots[1] = columns;
    slots[2] = rows;
    let at = 3;
    for (const [offset, stride] of operands) {
      slots[at++] = offset;
      slots[at++] = stride;
    }
    for (const scalar of scalars) slots[at++] = scalar;
    this.#rowBody(step)(slots, 0, 1);
  }

  /** All tiles of some rows: one band, or rows with scales of their own. */
  #tiles(
    step: "quantize" | "dequantize",
    dtype: Open["dtype"],
    [rows, columns]: Size,
    tiles: Tiles,
  ): void {
    const numBands = tiles.tileRows === 1 ? rows : 1;
    const slots = this.#slots;
    slots[AT.rows] = rows;
    slots[AT.columns] = columns;
    slots[AT.codesOffset] = tiles.codesOffset;
    slots[AT.codesRowStride] = tiles.codesRowStride;
    slots[AT.scalesOffset] = tiles.scalesOffset;
    slots[AT.scaleRowStride] = tiles.scaleRowStride;
    slots[AT.tileRows] = tiles.tileRows;
    slots[AT.tileColumns] = tiles.tileColumns;
    slots[AT.groupRows] = 0;
    slots[AT.numGroups] = 0;
    slots[AT.groupOffsets] = 0;
    slots[AT.numBands] = numBands;
    slots[AT.bandsPerTask] = numBands;
    slots[AT.columnsPerTask] = columns;
    this.#tileBody(step, dtype, tiles.format)(slots, 0, 1);
  }

  #tileBody(step: "quantize" | "dequantize", dtype: Open["dtype"], format: number): KernelBody {
    const index = format + (dtype === "f32" ? 0 : 4) + (step === "quantize" ? 0 : 8);
    const known = this.#tileBodies[index];
    if (known !== undefined) return known;
    const name = SCALED_FORMATS[format]!;
    const body = this.#create(step, step === "quantize" ? `${dtype}.${name}` : `${name}.${dtype}`);
    this.#tileBodies[index] = body;
    return body;
  }

  #rowBody(step: RowStep): KernelBody {
    const known = this.#rowBodies.get(step);
    if (known !== undefined) return known;
    const [name, variant] = step.split("/") as [StepName, string];
    const body = this.#create(name, variant);
    this.#rowBodies.set(step, body);
    return body;
  }

  #create(step: StepName, variant: string): KernelBody {
    const context = this.#context;
    const first = TARGETS.indexOf(this.#target);
    const found = STEPS[step].find(
      ({ target, refusal }) =>
        TARGETS.indexOf(target) >= first && refusal(variant, context) === null,
    );
    return defined(found, `a step ${step}/${variant}`).create(variant, context);
  }
}

/** The slots of tiles of single rows, from slot `at` on; those of row `row`. */
export function rowTiles(slots: Float64Array, at: number, row: number): Tiles {
  const [codesRowStride, scaleRowStride] = [slot(slots, at + 1), slot(slots, at + 3)];
  return {
    codesOffset: slot(slots, at) + row * codesRowStride,
    codesRowStride,
    scalesOffset: slot(slots, at + 2) + F32_BYTES * row * scaleRowStride,
    scaleRowStride,
    tileRows: 1,
    tileColumns: slot(slots, at + 4),
    format: slot(slots, at + 5),
    amaxMin: slot(slots, at + 6),
    powerOfTwo: slot(slots, at + 7),
  };
}

/** The same of tiles of one column: those of a band, whose first row is `row`. */
export function bandTiles(slots: Float64Array, at: number, band: number, row: number): Tiles {
  const [codesRowStride, scaleRowStride] = [slot(slots, at + 1), slot(slots, at + 3)];
  return {
    codesOffset: slot(slots, at) + row * codesRowStride,
    codesRowStride,
    scalesOffset: slot(slots, at + 2) + F32_BYTES * band * scaleRowStride,
    scaleRowStride,
    tileRows: TILE_ROWS_MOST,
    tileColumns: 1,
    format: slot(slots, at + 4),
    amaxMin: slot(slots, at + 5),
    powerOfTwo: slot(slots, at + 6),
  };
}

/** An operand of f32 from slot `at` on, from row `row` on. */
export function rowOperand(slots: Float64Array, at: number, row: number): RowOperand {
  const stride = slot(slots, at + 1);
  return [slot(slots, at) + F32_BYTES * row * stride, stride];
}

/** A body for a target and a variant. */
type CreateOfSteps = (target: KernelTarget, variant: string, context: ThreadContext) => KernelBody;

/** The implementations of a kernel made of steps: where row kernels can run. */
export function kernelOfSteps(create: CreateOfSteps): readonly KernelImplementation[] {
  return TARGETS.map((target): KernelImplementation => {
    const rows = STEPS.swiglu.find((implementation) => implementation.target === target);
    return {
      target,
      refusal: (_variant, context) => defined(rows, target).refusal("bf16", context),
      create: (variant, context) => create(target, variant, context),
    };
  });
}
