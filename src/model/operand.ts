/**
 * @file Operands of products under a recipe: plain tensors, or FP8 with scales; how they are made,
 * gathered, and turned for weight gradients.
 */
import { assert } from "../base/errors.ts";
import { gatherBytes, gatherRows } from "../kernels/gather/contract.ts";
import { MAKE_TILES_COLUMNS, makeTiles } from "../kernels/make-tiles/contract.ts";
import { dequantizeTiles, quantizeTiles, retile } from "../kernels/quantize-tiles/contract.ts";
import type { ProductFormat } from "../kernels/scaled-matmul/contract.ts";
import type { TilesToMake } from "../kernels/tile-slots.ts";
import { E5M6 } from "../numerics/e5m6.ts";
import { E4M3, E5M2 } from "../numerics/fp8.ts";
import { ACTIVATION_AMAX_MIN } from "../numerics/scales.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import {
  allocateScaled,
  makeScaled,
  type RowGroups,
  type ScaledShape,
  type ScaledTensor,
} from "../tensor/scaled-tensor.ts";
import { makeTensor, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ComputeType } from "./parameters.ts";
import { copyToCompute, type Pass } from "./pass.ts";
import {
  isScaledFormat,
  isScaledRecipe,
  type PrecisionRecipe,
  type TensorClass,
  type TensorRule,
} from "./precision-recipe.ts";
import { scaledShape } from "./scaled-shape.ts";

/** What a product reads. */
export type Operand = Tensor<ComputeType> | ScaledTensor;

/** A gradient of an output, as the two products of a backward pass read it. */
export interface OutputGradient {
  readonly dgrad: Operand;
  readonly wgrad: Operand;
}

export function isScaled(operand: Operand): operand is ScaledTensor {
  return "codes" in operand;
}

/** The values of `x` in FP8, allocated from `arena`; a tile's amax counts as `amaxMin` at least. */
export function quantize(
  pass: Pass,
  arena: Arena,
  x: Tensor<ComputeType>,
  { rule, groups, amaxMin = ACTIVATION_AMAX_MIN }: Quantization,
): ScaledTensor {
  const out = allocateScaled(arena, scaledShape(rule, x.rows, x.columns, groups));
  quantizeInto(pass, x, out, { rule, amaxMin });
  return out;
}

function quantizeInto(
  pass: Pass,
  x: Tensor<ComputeType>,
  out: ScaledTensor,
  { rule, amaxMin = ACTIVATION_AMAX_MIN }: Quantization,
): void {
  const powerOfTwo = rule.scales === "powerOfTwo";
  quantizeTiles(pass.device, { x: openTensor(x), out, amaxMin, powerOfTwo });
}

interface Quantization {
  readonly rule: TensorRule;
  readonly groups?: RowGroups | undefined;
  readonly amaxMin?: number;
}

/** The least amax of an activation's tiles: raised where an outlier shares the only scale. */
function leastAmax(
  pass: Pass,
  x: Operand,
  rule: TensorRule,
  { outlierFactor }: PrecisionRecipe,
): number {
  if (outlierFactor === 0 || rule.tile !== "tensor") return ACTIVATION_AMAX_MIN;
  const largest = isScaled(x)
    ? largestScaled(x)
    : outlierFactor * largestMagnitude(pass, openTensor(x));
  return Math.max(ACTIVATION_AMAX_MIN, largest);
}

/** The largest value that the only scale of a tensor stands for. */
function largestScaled({ format, scales }: ScaledTensor): number {
  const { largest } = { e4m3: E4M3, e5m2: E5M2, e5m6: E5M6 }[format];
  return largest * view(scales).reduce((most, scale) => Math.max(most, scale), 0);
}

/** The largest finite value's magnitude, up to the rounding of a scale: by scales of the rows. */
function largestMagnitude({ device, scratch }: Pass, x: Tensor<"f32" | "bf16">): number {
  using _mark = scratch.mark();
  const { rows, columns } = x;
  const shape = { format: "e4m3", rows, columns, tileRows: 1, groups: { kind: "none" } } as const;
  const out = allocateScaled(scratch, { ...shape, tileColumns: Math.max(1, columns) });
  quantizeTiles(device, { x, out, amaxMin: ACTIVATION_AMAX_MIN, powerOfTwo: false });
  return largestScaled(out);
}

/** The values of a scaled tensor, allocated from `arena`. */
export function dequantize<D extends "f32" | "bf16">(
  pass: Pass,
  arena: Arena,
  x: ScaledTensor,
  dtype: D,
): Tensor<D> {
  const out = arena.allocate(dtype, [x.rows, x.columns]);
  dequantizeTiles(pass.device, { x, out });
  return out;
}

/** `x` as a product under the recipe reads it: `x` itself if products are plain. */
export function operandOf(
  pass: Pass,
  arena: Arena,
  x: Operand,
  { recipe, use }: { readonly recipe: PrecisionRecipe; readonly use: TensorClass },
): Operand {
  const isReady = isScaled(x) || !isScaledRecipe(recipe);
  if (isReady) return x;
  const rule = recipe.tensors[use];
  return quantize(pass, arena, x, { rule, amaxMin: leastAmax(pass, x, rule, recipe) });
}

/** A layer's input as its products read it, and what of it is cached for the backward pass. */
export interface LayerInput {
  readonly operand: Operand;
  /** null where the caller gives the input again. */
  readonly cached: Operand | null;
}

/** Scaled inputs are cached where the recipe says so; all else is the caller's to give again. */
export function layerInput(
  pass: Pass,
  x: Operand,
  { recipe, use }: { readonly recipe: PrecisionRecipe; readonly use: TensorClass },
): LayerInput {
  if (isScaled(x) || !isScaledRecipe(recipe)) return { operand: x, cached: null };
  const isCached = recipe.tensors[use].held === "cached";
  const operand = operandOf(pass, isCached ? pass.saved : pass.scratch, x, { recipe, use });
  return { operand, cached: isCached ? operand : null };
}

/** Memory for a tensor that will be cached under the rule: where it stays, if it stays as it is. */
export function allocateCached(
  pass: Pass,
  rule: TensorRule,
  shape: readonly number[],
): Tensor<FloatType> {
  const arena = isScaledFormat(rule.format) ? pass.scratch : pass.saved;
  return arena.allocate(pass.floatType, shape);
}

/** A tensor from `allocateCached`, once it is filled, as it is cached. */
export function cacheAs(pass: Pass, x: Tensor<FloatType>, rule: TensorRule): Operand {
  return isScaledFormat(rule.format) ? quantize(pass, pass.saved, x, { rule }) : x;
}

/** The values of a cached tensor, allocated from scratch where they are scaled. */
export function openCached(pass: Pass, x: Operand): Tensor<FloatType> {
  return isScaled(x) ? dequantize(pass, pass.scratch, x, "f32") : (x as Tensor<FloatType>);
}

/**
 * Where a plain tensor is made that a weight gradient reads: the queue's memory, or scratch where
 * the weight gradient reads a scaled copy.
 */
export function wgradSource(pass: Pass, recipe: PrecisionRecipe): Arena {
  return isScaledRecipe(recipe) ? pass.scratch : pass.weightGrads.arena;
}

/**
 * An input as weight gradients read it: a plain product's as it is; a scaled one's with tiles along
 * the tokens, which begin anew with each of `groups`, in the memory of the queue.
 */
export function wgradInput(
  pass: Pass,
  input: Operand,
  recipe: PrecisionRecipe,
  groups?: RowGroups,
): Operand {
  if (!isScaledRecipe(recipe)) return input;
  const rule = recipe.tensors.wgradInput;
  return alongTokens(pass, input, { rule, groups, amaxMin: leastAmax(pass, input, rule, recipe) });
}

/**
 * A gradient for both products of a backward pass. Where products are plain it is used as it is,
 * rounded, and must live until the queue has run.
 */
export function outputGradient(
  pass: Pass,
  dOut: Tensor<ComputeType>,
  recipe: PrecisionRecipe,
  groups?: RowGroups,
): OutputGradient {
  if (!isScaledRecipe(recipe)) return plainGradient(dOut);
  const { outputGradient: rule, wgradGradient } = recipe.tensors;
  if (isRowTile(rule) && isColumnTile(wgradGradient) && dOut.columns <= MAKE_TILES_COLUMNS) {
    const { rows, columns } = dOut;
    const along = tilesToMake(pass.scratch, rule, [rows, columns]);
    const across = tilesToMake(pass.weightGrads.arena, wgradGradient, [rows, columns], groups);
    makeTiles(pass.device, { x: openTensor(dOut), along, across });
    return { dgrad: along.out, wgrad: across.out };
  }
  return {
    dgrad: quantize(pass, pass.scratch, dOut, { rule }),
    wgrad: alongTokens(pass, dOut, { rule: wgradGradient, groups }),
  };
}

/** Whether a rule's tiles have one row. */
export function isRowTile({ tile }: TensorRule): boolean {
  return tile === "1x128" || tile === "row";
}

/** Whether they have one column and stand on top of each other. */
export function isColumnTile({ tile }: TensorRule): boolean {
  return tile === "128x1";
}

/** Codes under a rule, to be made: allocated from `arena`. */
export function tilesToMake(
  arena: Arena,
  rule: TensorRule,
  [rows, columns]: readonly [number, number],
  groups?: RowGroups,
): TilesToMake {
  const out = allocateScaled(arena, scaledShape(rule, rows, columns, groups));
  return { out, amaxMin: ACTIVATION_AMAX_MIN, powerOfTwo: rule.scales === "powerOfTwo" };
}

/** The same from the float type: rounded on the way, or copied. */
export function roundGradient(
  pass: Pass,
  dOut: Tensor<FloatType>,
  recipe: PrecisionRecipe,
): OutputGradient {
  if (isScaledRecipe(recipe)) return outputGradient(pass, dOut, recipe);
  return plainGradient(copyToCompute(pass, pass.weightGrads.arena, dOut));
}

/** One tensor for both products. */
export function plainGradient(dOut: Tensor<ComputeType>): OutputGradient {
  return { dgrad: dOut, wgrad: dOut };
}

/** Tiles for a weight gradient, in the memory of the queue. */
export function alongTokens(
  pass: Pass,
  x: Operand,
  { rule, groups, amaxMin = ACTIVATION_AMAX_MIN }: Quantization,
): ScaledTensor {
  const { arena } = pass.weightGrads;
  // Tiles as high as the matrix stand across all groups.
  const isWhole = rule.tile === "column" || rule.tile === "tensor";
  const within = isWhole ? undefined : groups;
  if (!isScaled(x)) return quantize(pass, arena, x, { rule, groups: within, amaxMin });
  const shape = scaledShape(rule, x.rows, x.columns, within) as ScaledShape<ProductFormat>;
  const out = allocateScaled(arena, shape);
  const powerOfTwo = rule.scales === "powerOfTwo";
  retile(pass.device, { x, out, amaxMin, powerOfTwo });
  return out;
}

/**
 * Rows of an operand by index, allocated from `arena`. Codes and scales of rows that have scales of
 * their own are copied; of others, whose tiles no longer hold, the values are quantised anew.
 */
export function gatherOperand(
  pass: Pass,
  arena: Arena,
  source: { readonly x: Operand; readonly index: Tensor<"i32">; readonly rule: TensorRule },
): Operand {
  const { x, index, rule } = source;
  const { device } = pass;
  const rows = index.columns;
  if (!isScaled(x)) {
    const out = arena.allocate(x.dtype, [rows, x.columns]);
    gatherRows(device, { src: x, index, out });
    return out;
  }
  if (x.tileRows === 1) {
    const out = allocateScaled(arena, { ...x, rows });
    gatherBytes(device, { src: asBytes(x), index, out: asBytes(out) });
    gatherRows(device, { src: x.scales, index, out: out.scales });
    return out;
  }
  if (x.tileRows >= x.rows && x.tileColumns >= x.columns) {
    const shape = { ...x, rows, tileRows: Math.max(rows, x.tileRows) };
    const codes = arena.allocate(x.codes.dtype, [rows, x.codes.columns]);
    const out = makeScaled(shape, { codes, scales: x.scales });
    gatherBytes(device, { src: asBytes(x), index, out: asBytes(out) });
    return out;
  }
  // Before the mark: `arena` may be scratch itself.
  const out = allocateScaled(arena, scaledShape(rule, rows, x.columns));
  using _mark = pass.scratch.mark();
  const open = dequantize(pass, pass.scratch, x, "bf16");
  const gathered = pass.scratch.allocate("bf16", [rows, x.columns]);
  gatherRows(device, { src: open, index, out: gathered });
  quantizeInto(pass, gathered, out, { rule });
  return out;
}

function asBytes({ codes }: ScaledTensor): Tensor<"u8"> {
  return makeTensor(codes.memory, "u8", codes.shape, codes.byteOffset, codes.rowStride);
}

function openTensor(x: Tensor<ComputeType>): Tensor<"f32" | "bf16"> {
  assert(x.dtype !== "f64", "FP8 operands are made from f32 or bf16");
  return x as Tensor<"f32" | "bf16">;
}
