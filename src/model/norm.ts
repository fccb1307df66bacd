/**
 * @file RMSNorm as a layer: out = x / rms(x) · gain, in the float type or rounded for the products
 * that follow.
 *
 * Saves nothing: backward takes x again. Outputs are cheap to recompute (one pass over x) and are
 * recomputed wherever a weight gradient needs them, as the DeepSeek-V3 recipe has it.
 */
import { MAKE_TILES_COLUMNS, makeTiles } from "../kernels/make-tiles/contract.ts";
import { rmsNorm, rmsNormBackward } from "../kernels/rms-norm/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { ScaledTensor } from "../tensor/scaled-tensor.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { WriteMode } from "./linear.ts";
import { isColumnTile, isRowTile, type LayerInput, layerInput, tilesToMake } from "./operand.ts";
import type { ComputeType, Parameter } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import {
  isScaledRecipe,
  type PrecisionRecipe,
  type TensorClass,
  type TensorRule,
} from "./precision-recipe.ts";

export interface NormBackward {
  readonly x: Tensor<FloatType>;
  readonly dOut: Tensor<FloatType>;
  readonly dX: Tensor<FloatType>;
  readonly mode: WriteMode;
}

/** Codes of a class in a recipe, and where they are allocated. */
export interface WantedTiles {
  readonly arena: Arena;
  readonly use: TensorClass;
}

export class RmsNorm {
  readonly gain: Parameter;
  readonly epsilon: number;

  constructor(gain: Parameter, epsilon: number) {
    this.gain = gain;
    this.epsilon = epsilon;
  }

  forward(pass: Pass, x: Tensor<FloatType>, out: Tensor<ComputeType>): void {
    rmsNorm(pass.device, { x, gain: this.gain.value, epsilon: this.epsilon, out });
  }

  /** The output rounded for products, allocated from `arena`. */
  compute(pass: Pass, arena: Arena, x: Tensor<FloatType>): Tensor<ComputeType> {
    const out = arena.allocate(pass.computeType, [x.rows, x.columns]);
    this.forward(pass, x, out);
    return out;
  }

  /**
   * The output as codes of some classes of a recipe, of which one at most has tiles of one row and
   * one at most of one column; null where they cannot be made without the output itself.
   */
  computeTiles<const Wanted extends readonly WantedTiles[]>(
    pass: Pass,
    x: Tensor<FloatType>,
    recipe: PrecisionRecipe,
    wanted: Wanted,
  ): { readonly [Index in keyof Wanted]: ScaledTensor } | null {
    const rules = wanted.map(({ use }) => recipe.tensors[use]);
    const areTiles = rules.every((rule) => isColumnTile(rule) || isRowTile(rule));
    if (!isScaledRecipe(recipe) || !areTiles || x.columns > MAKE_TILES_COLUMNS) return null;
    const tiles = rules.map((rule, index) =>
      tilesToMake(wanted[index]!.arena, rule, [x.rows, x.columns]),
    );
    const of = (isKind: (rule: TensorRule) => boolean) => tiles[rules.findIndex(isKind)];
    const [along, across] = [of(isRowTile), of(isColumnTile)];
    makeTiles(pass.device, {
      x: x as Tensor<"f32">,
      norm: { gain: this.gain.value as Tensor<"f32">, epsilon: this.epsilon },
      ...(along === undefined ? {} : { along }),
      ...(across === undefined ? {} : { across }),
    });
    return tiles.map(({ out }) => out) as { readonly [Index in keyof Wanted]: ScaledTensor };
  }

  /** The output as a layer's products read it, and what of it is cached. */
  layerInput(
    pass: Pass,
    x: Tensor<FloatType>,
    { recipe, use }: { readonly recipe: PrecisionRecipe; readonly use: TensorClass },
  ): LayerInput {
    const isCached = recipe.tensors[use].held === "cached";
    const arena = isCached ? pass.saved : pass.scratch;
    const tiles = this.computeTiles(pass, x, recipe, [{ arena, use }]);
    if (tiles === null) {
      return layerInput(pass, this.compute(pass, pass.scratch, x), { recipe, use });
    }
    const [operand] = tiles;
    return { operand, cached: isCached ? operand : null };
  }

  backward(pass: Pass, { x, dOut, dX, mode }: NormBackward): void {
    rmsNormBackward(pass.device, {
      x,
      gain: this.gain.value,
      epsilon: this.epsilon,
      dOut,
      dX,
      accumulate: mode === "accumulate",
      dGain: this.gain.gradient,
      arena: pass.scratch,
    });
  }
}
