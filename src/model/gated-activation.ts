/**
 * @file The gated activation of feed-forward networks under a recipe: from [gate | up] to what the
 * down product reads, what of it is cached, and back.
 *
 * Where every format between has tiles of one row, or of one column for weight gradients, the
 * activation and its gradient exist as codes alone (kernels/swiglu-tiles); otherwise they are bf16
 * tensors in between, or stay as they are where products are plain. The numbers are the same.
 */
import { divExact } from "../base/integers.ts";
import { swiglu, swigluBackward } from "../kernels/swiglu/contract.ts";
import {
  SWIGLU_TILES_COLUMNS,
  swigluTiles,
  swigluTilesBackward,
} from "../kernels/swiglu-tiles/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { RowGroups, ScaledTensor } from "../tensor/scaled-tensor.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  cacheAs,
  isColumnTile,
  isRowTile,
  isScaled,
  type Operand,
  type OutputGradient,
  openCached,
  operandOf,
  outputGradient,
  tilesToMake,
  wgradInput,
  wgradSource,
} from "./operand.ts";
import type { Pass } from "./pass.ts";
import { isScaledRecipe, type PrecisionRecipe } from "./precision-recipe.ts";

/** Whether activations of so many columns exist as codes alone. */
export function isTiledActivation(
  { tensors, ...recipe }: PrecisionRecipe,
  columns: number,
): boolean {
  const { swigluInput, swigluOutput, outputGradient, wgradInput, wgradGradient } = tensors;
  const areRows = [swigluInput, swigluOutput, outputGradient].every(isRowTile);
  const areColumns = [wgradInput, wgradGradient].every(isColumnTile);
  const isScaledOne = isScaledRecipe({ tensors, ...recipe });
  return isScaledOne && areRows && areColumns && columns <= SWIGLU_TILES_COLUMNS;
}

export interface ActivationCall {
  readonly gateUp: Tensor<FloatType>;
  /** Of each row, [R, 1]. */
  readonly weight?: Tensor<FloatType>;
  readonly recipe: PrecisionRecipe;
}

/** `gateUp` as it is cached, and the activation, from scratch, as the down product reads it. */
export function activate(
  pass: Pass,
  { gateUp, weight, recipe }: ActivationCall,
): { readonly kept: Operand; readonly activation: Operand } {
  const { device, scratch, saved, computeType } = pass;
  const { swigluInput, swigluOutput } = recipe.tensors;
  const { rows } = gateUp;
  const columns = divExact(gateUp.columns, 2);
  if (isTiledActivation(recipe, columns)) {
    const kept = tilesToMake(saved, swigluInput, [rows, 2 * columns]);
    const out = tilesToMake(scratch, swigluOutput, [rows, columns]);
    const inputs = { gateUp: gateUp as Tensor<"f32">, weight: weight as Tensor<"f32"> | undefined };
    swigluTiles(device, { ...inputs, kept, out });
    return { kept: kept.out, activation: out.out };
  }
  const kept = cacheAs(pass, gateUp, swigluInput);
  const out = scratch.allocate(computeType, [rows, columns]);
  swiglu(device, { gateUp, out, ...(weight === undefined ? {} : { weight }) });
  return { kept, activation: operandOf(pass, scratch, out, { recipe, use: "swigluOutput" }) };
}

export interface ActivationBackwardCall {
  /** As it was cached. */
  readonly gateUp: Operand;
  /** Weights of the rows and where their gradients go. */
  readonly weights?: { readonly weight: Tensor<FloatType>; readonly dWeight: Tensor<FloatType> };
  readonly recipe: PrecisionRecipe;
  /** Rows whose tiles along the tokens begin anew. */
  readonly groups?: RowGroups;
}

export interface ActivationGradient {
  /** The activation as the down product's weight gradient reads it. */
  readonly input: Operand;
  readonly dGateUp: OutputGradient;
}

/** `fillGradient` writes the activation's gradient, [R, I]; its scratch is given back behind it. */
export function activateBackward(
  pass: Pass,
  call: ActivationBackwardCall,
  fillGradient: (dActivation: Tensor<FloatType>) => void,
): ActivationGradient {
  const { gateUp, weights, recipe, groups } = call;
  const { scratch, floatType, computeType, device } = pass;
  const { rows } = gateUp;
  const columns = divExact(gateUp.columns, 2);
  if (isScaled(gateUp) && isTiledActivation(recipe, columns)) {
    return backwardInTiles(pass, { ...call, gateUp }, fillGradient);
  }
  const opened = openCached(pass, gateUp);
  const source = wgradSource(pass, recipe);
  const activation = source.allocate(computeType, [rows, columns]);
  const dGateUp = source.allocate(computeType, [rows, 2 * columns]);
  {
    using _inner = scratch.mark();
    const dOut = scratch.allocate(floatType, [rows, columns]);
    fillGradient(dOut);
    swigluBackward(device, { gateUp: opened, ...weights, dOut, dGateUp, activation });
  }
  return {
    input: wgradInput(pass, activation, recipe, groups),
    dGateUp: outputGradient(pass, dGateUp, recipe, groups),
  };
}

function backwardInTiles(
  pass: Pass,
  call: ActivationBackwardCall & { readonly gateUp: ScaledTensor },
  fillGradient: (dActivation: Tensor<FloatType>) => void,
): ActivationGradient {
  const { gateUp, weights, groups } = call;
  const { scratch, weightGrads, device } = pass;
  const { rows } = gateUp;
  const columns = divExact(gateUp.columns, 2);
  const rules = call.recipe.tensors;
  const along = tilesToMake(scratch, rules.outputGradient, [rows, 2 * columns]);
  const across = tilesToMake(weightGrads.arena, rules.wgradGradient, [rows, 2 * columns], groups);
  const input = tilesToMake(weightGrads.arena, rules.wgradInput, [rows, columns], groups);
  using _mark = scratch.mark();
  const dOut = scratch.allocate("f32", [rows, columns]);
  fillGradient(dOut);
  swigluTilesBackward(device, {
    gateUp,
    weight: weights?.weight as Tensor<"f32"> | undefined,
    dWeight: weights?.dWeight as Tensor<"f32"> | undefined,
    ...{ dOut, along, across, input },
  });
  return { input: input.out, dGateUp: { dgrad: along.out, wgrad: across.out } };
}
