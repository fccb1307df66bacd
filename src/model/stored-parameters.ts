/**
 * @file Parameters of a model that is only to infer: each is kept once, as products read it, and
 * nothing is kept beside it.
 *
 *     linear layers, experts, head           in the weight format (weight-format.ts)
 *     embedding, gates, and what it leaves   bf16
 *     norm gains                             f32
 *
 * A checkpoint fills them row by row, so that no more than one of its tensors is ever held in f32.
 * Gradients and master values are asserted to be absent.
 */
import { assert, unreachable } from "../base/errors.ts";
import { ceilDiv, divExact, floorDiv } from "../base/integers.ts";
import { encodeBf16 } from "../numerics/bf16.ts";
import { E4M3 } from "../numerics/fp8.ts";
import { makeCodedRow, quantizeRow } from "../numerics/integer-groups.ts";
import {
  blockGrid,
  numScales,
  quantize,
  SCALE_BLOCK,
  WEIGHT_AMAX_MIN,
} from "../numerics/scales.ts";
import type { Arena } from "../tensor/arena.ts";
import {
  allocateCoded,
  type CodedRowParts,
  type CodedWeight,
  codedBytes,
  writeCodedRow,
} from "../tensor/coded-weight.ts";
import { DTYPE_BYTES } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import { declareHeldParameters, declarePlaced, type HeldParameters } from "./parameter-layout.ts";
import type { Parameter } from "./parameters.ts";
import type { PrecisionRecipe } from "./precision-recipe.ts";
import { codedShapeOf, type WeightFormat } from "./weight-format.ts";

interface StoreOptions extends HeldParameters {
  readonly recipe: PrecisionRecipe;
  readonly weights: WeightFormat;
}

/** What is the same for all parameters of a model that is only to infer. */
type Common = Pick<Parameter, "name" | "shape" | "role" | "numExperts" | "recipe" | "scaled">;

/** Zeros for every parameter held, allocated from `arena`, in the order of the forward pass. */
export function storeParameters(
  arena: Arena,
  config: ModelConfig,
  options: StoreOptions,
): readonly Parameter[] {
  const numHeld = options.heldExperts?.length ?? config.numRoutedExperts;
  return declareHeldParameters(config, options).map((declaration) => {
    const shape = codedShapeOf(declaration, numHeld, options.weights);
    const numExperts = declaration.role === "experts" ? numHeld : 1;
    const common = { ...declaration, numExperts, recipe: options.recipe, scaled: null };
    if (shape === null) return storePlain(arena, common);
    return storeCoded(common, allocateCoded(arena, shape));
  });
}

function storePlain(arena: Arena, common: Common): Parameter {
  const { name, role, shape } = common;
  const isNorm = role === "norm";
  const kept = arena.allocateZeros(isNorm ? "f32" : "bf16", shape);
  return {
    ...common,
    decays: !isNorm,
    get gradient(): Tensor<"f32"> {
      return unreachable(`${name} has no gradient: the model was made to infer`);
    },
    get value(): Tensor<"f32"> {
      if (!isNorm) unreachable(`${name} has no master values: the model was made to infer`);
      return kept as Tensor<"f32">;
    },
    compute: kept,
    coded: null,
    kept,
    stored: [kept],
  };
}

function storeCoded(common: Common, coded: CodedWeight): Parameter {
  const none = (): never =>
    unreachable(`${common.name} is kept in codes alone: the model was made to infer`);
  const { codes, scales, offsets } = coded;
  return {
    ...common,
    decays: true,
    get gradient(): Tensor<"f32"> {
      return none();
    },
    get value(): Tensor<"f32"> {
      return none();
    },
    get compute(): Tensor<"bf16"> {
      return none();
    },
    get kept(): Tensor<"bf16"> {
      return none();
    },
    coded,
    stored: offsets === null ? [codes, scales] : [codes, scales, offsets],
  };
}

/**
 * Bytes of all parameters as they are kept, with so many places for the experts of a layer, padding
 * to cache lines not counted.
 */
export function storedBytes(
  config: ModelConfig,
  weights: WeightFormat,
  numPlaces: number = config.numRoutedExperts,
): number {
  return declarePlaced(config, numPlaces).reduce((sum, declaration) => {
    const coded = codedShapeOf(declaration, numPlaces, weights);
    const { role, shape } = declaration;
    const plain = shape[0] * shape[1] * DTYPE_BYTES[role === "norm" ? "f32" : "bf16"];
    return sum + (coded === null ? plain : codedBytes(coded));
  }, 0);
}

/** Set whole rows of a parameter, from `rowStart` on, to these values, in its format. */
export function fillRows(parameter: Parameter, rowStart: number, values: Float32Array): void {
  const { coded, shape } = parameter;
  const [, columns] = shape;
  const rows = divExact(values.length, columns);
  if (coded === null) {
    const target = sliceRows(parameter.kept, rowStart, rowStart + rows);
    if (target.dtype === "bf16") encodeBf16(values, view(target as Tensor<"bf16">));
    else view(target as Tensor<"f32">).set(values);
  } else if (coded.format === "e4m3") {
    const grid = blockGrid(rows, columns);
    const out = { codes: new Uint8Array(values.length), scales: new Float32Array(numScales(grid)) };
    quantize(values, grid, { format: E4M3, amaxMin: WEIGHT_AMAX_MIN, powerOfTwo: false }, out);
    fillFp8(parameter, rowStart, out);
  } else {
    const { groupSize, asymmetric } = coded;
    const rule = { bits: coded.format === "int8" ? 8 : 4, groupSize, asymmetric } as const;
    const row = makeCodedRow(columns, groupSize);
    for (let index = 0; index < rows; index++) {
      quantizeRow(values.subarray(index * columns, (index + 1) * columns), rule, row);
      fillCodes(parameter, rowStart + index, row);
    }
  }
}

/** Set one row of a coded parameter to codes of its own format. */
export function fillCodes({ coded, name }: Parameter, row: number, parts: CodedRowParts): void {
  assert(coded !== null, `${name} is not coded`);
  writeCodedRow(coded, row, parts);
}

/** Set rows of an FP8 parameter to E4M3 codes with the scales of their 128×128 blocks. */
export function fillFp8(
  parameter: Parameter,
  rowStart: number,
  { codes, scales }: { readonly codes: Uint8Array; readonly scales: Float32Array },
): void {
  const [, columns] = parameter.shape;
  const perRow = ceilDiv(columns, SCALE_BLOCK);
  for (let row = 0; row < codes.length / columns; row++) {
    const block = floorDiv(row, SCALE_BLOCK) * perRow;
    fillCodes(parameter, rowStart + row, {
      codes: codes.subarray(row * columns, (row + 1) * columns),
      scales: scales.subarray(block, block + perRow),
    });
  }
}
