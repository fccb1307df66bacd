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
import { isColumnTile, isRowTile, tilesToMake } from "./operand.ts";
import type { ComputeType, Parameter } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import { isScaledRecipe, type PrecisionRecipe, type TensorClass } from "./precision-recipe.ts";

export interface NormBackward {
  readonly x: Tensor<FloatType>;
  readonly dOut: Tensor<FloatType>;
  readonly dX: Tensor<FloatType>;
  readonly mode: WriteMode;
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
   * The output as codes of its class in a recipe, allocated from `arena`; null where they cannot be
   * made without the output itself.
   */
  computeTiles(
    pass: Pass,
    arena: Arena,
    x: Tensor<FloatType>,
    recipe: PrecisionRecipe,
    use: TensorClass,
  ): ScaledTensor | null {
    const rule = recipe.tensors[use];
    const isAcross = isColumnTile(rule);
    const fits = (isAcross || isRowTile(rule)) && x.columns <= MAKE_TILES_COLUMNS;
    if (!isScaledRecipe(recipe) || !fits) return null;
    const tiles = tilesToMake(arena, rule, [x.rows, x.columns]);
    makeTiles(pass.device, {
      x: x as Tensor<"f32">,
      norm: { gain: this.gain.value as Tensor<"f32">, epsilon: this.epsilon },
      ...(isAcross ? { across: tiles } : { along: tiles }),
    });
    return tiles.out;
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
