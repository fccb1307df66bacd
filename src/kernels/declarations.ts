/** @file All kernels, in the order that gives them their numbers. */
import {
  ACCUMULATE_VARIANTS,
  ADD_ROWS_VARIANTS,
  LERP_VARIANTS,
  SUM_SLICES_VARIANTS,
} from "./accumulate/contract.ts";
import {
  createReferenceAccumulate,
  createReferenceAddRows,
  createReferenceLerp,
  createReferenceSumSlices,
} from "./accumulate/reference.ts";
import { ADAMW_VARIANTS, SUM_SQUARES_VARIANTS } from "./adamw/contract.ts";
import { createReferenceAdamw, createReferenceSumSquares } from "./adamw/reference.ts";
import { ATTENTION_SLOTS, ATTENTION_VARIANTS } from "./attention/contract.ts";
import { attentionImplementations } from "./attention/generated.ts";
import {
  createReferenceAttention,
  createReferenceAttentionBackward,
} from "./attention/reference.ts";
import { CAST_ROWS_VARIANTS } from "./cast-rows/contract.ts";
import { createReferenceCastRows } from "./cast-rows/reference.ts";
import { CODED_MATMUL_SLOTS, CODED_MATMUL_VARIANTS } from "./coded-matmul/contract.ts";
import { CODED_MATMUL_IMPLEMENTATIONS } from "./coded-matmul/generated.ts";
import { createReferenceCodedMatmul } from "./coded-matmul/reference.ts";
import { CROSS_ENTROPY_VARIANTS } from "./cross-entropy/contract.ts";
import { createReferenceCrossEntropy } from "./cross-entropy/reference.ts";
import { PLAN_DISPATCH_SLOTS } from "./dispatch/contract.ts";
import { createReferencePlanDispatch } from "./dispatch/reference.ts";
import {
  COMBINE_ROWS_VARIANTS,
  GATHER_BYTES_VARIANTS,
  GATHER_ROWS_VARIANTS,
  SCATTER_ADD_VARIANTS,
  SCATTER_ROWS_VARIANTS,
} from "./gather/contract.ts";
import {
  createReferenceCombineRows,
  createReferenceGatherBytes,
  createReferenceGatherRows,
  createReferenceScatterAddRows,
  createReferenceScatterRows,
} from "./gather/reference.ts";
import { GROUPED_MATMUL_SLOTS } from "./grouped-matmul/contract.ts";
import { groupedMatmulOver } from "./grouped-matmul/generated.ts";
import { createReferenceGroupedMatmul } from "./grouped-matmul/reference.ts";
import { GROUPED_SCALED_MATMUL_SLOTS } from "./grouped-scaled-matmul/contract.ts";
import { createReferenceGroupedScaledMatmul } from "./grouped-scaled-matmul/reference.ts";
import { type KernelDeclaration, reference } from "./kernel.ts";
import { LATENT_ATTENTION_SLOTS, LATENT_ATTENTION_VARIANTS } from "./latent-attention/contract.ts";
import { LATENT_ATTENTION_IMPLEMENTATIONS } from "./latent-attention/generated.ts";
import { createReferenceLatentAttention } from "./latent-attention/reference.ts";
import { createMakeTiles } from "./make-tiles/body.ts";
import { MAKE_TILES_SLOTS, MAKE_TILES_VARIANTS } from "./make-tiles/contract.ts";
import { MATMUL_SLOTS, MATMUL_VARIANTS } from "./matmul/contract.ts";
import { MULTIPLIERS, matmulOver } from "./matmul/multiplier-factory.ts";
import { createReferenceMatmul } from "./matmul/reference.ts";
import {
  DEQUANTIZE_TILES_SLOTS,
  DEQUANTIZE_TILES_VARIANTS,
  QUANTIZE_TILES_SLOTS,
  QUANTIZE_TILES_VARIANTS,
  RETILE_SLOTS,
  RETILE_VARIANTS,
} from "./quantize-tiles/contract.ts";
import {
  createReferenceDequantizeTiles,
  createReferenceQuantizeTiles,
  createReferenceRetile,
} from "./quantize-tiles/reference.ts";
import { WASM_DEQUANTIZE_TILES, WASM_QUANTIZE_TILES, WASM_RETILE } from "./quantize-tiles/wasm.ts";
import { X64_DEQUANTIZE_TILES, X64_QUANTIZE_TILES, X64_RETILE } from "./quantize-tiles/x64.ts";
import {
  RMS_NORM_BACKWARD_VARIANTS,
  RMS_NORM_VARIANTS,
  SUM_PARTIALS_VARIANTS,
} from "./rms-norm/contract.ts";
import {
  createReferenceRmsNorm,
  createReferenceRmsNormBackward,
  createReferenceSumPartials,
} from "./rms-norm/reference.ts";
import { ROPE_VARIANTS } from "./rope/contract.ts";
import { createReferenceRope } from "./rope/reference.ts";
import { ROUTE_BACKWARD_SLOTS, ROUTE_SLOTS } from "./route/contract.ts";
import { createReferenceRoute, createReferenceRouteBackward } from "./route/reference.ts";
import { rowImplementations } from "./row-kernel.ts";
import { ROW_PROGRAMS, type RowKernelName } from "./row-programs.ts";
import { SCALED_MATMUL_SLOTS, SCALED_MATMUL_VARIANTS } from "./scaled-matmul/contract.ts";
import {
  GROUPED_SCALED_MATMUL_IMPLEMENTATIONS,
  SCALED_MATMUL_IMPLEMENTATIONS,
} from "./scaled-matmul/generated.ts";
import { createReferenceScaledMatmul } from "./scaled-matmul/reference.ts";
import { SEQUENCE_BALANCE_SLOTS } from "./sequence-balance/contract.ts";
import { createReferenceSequenceBalance } from "./sequence-balance/reference.ts";
import { SOFTMAX_VARIANTS } from "./softmax/contract.ts";
import {
  createReferenceSoftmaxBackward,
  createReferenceSoftmaxCausal,
} from "./softmax/reference.ts";
import { SWIGLU_VARIANTS } from "./swiglu/contract.ts";
import { createReferenceSwiglu, createReferenceSwigluBackward } from "./swiglu/reference.ts";
import { createSwigluTiles, createSwigluTilesBackward } from "./swiglu-tiles/body.ts";
import {
  SWIGLU_TILES_BACKWARD_SLOTS,
  SWIGLU_TILES_SLOTS,
  SWIGLU_TILES_VARIANTS,
} from "./swiglu-tiles/contract.ts";
import { kernelOfSteps } from "./tile-steps.ts";

const FLOATS = ["f32", "f64"] as const;
const ROWS = ["rows", "columns", "rowsPerTask"] as const;

function declare(
  name: string,
  variants: readonly string[],
  slots: readonly string[],
  create: Parameters<typeof reference>[0],
): KernelDeclaration {
  return { name, variants, slots, implementations: [reference(create)] };
}

/** A kernel that is a row program: generated for every target, over the slots of `launchRows`. */
function declareRows(
  name: RowKernelName,
  variants: readonly string[],
  create: Parameters<typeof reference>[0],
): KernelDeclaration {
  const implementations = [...rowImplementations(ROW_PROGRAMS[name]), reference(create)];
  return { name, variants, slots: ROWS, implementations };
}

export const DECLARATIONS: readonly KernelDeclaration[] = [
  {
    name: "matmul",
    variants: MATMUL_VARIANTS,
    slots: MATMUL_SLOTS,
    implementations: [...MULTIPLIERS.map(matmulOver), reference(createReferenceMatmul)],
  },
  {
    name: "groupedMatmul",
    variants: MATMUL_VARIANTS,
    slots: GROUPED_MATMUL_SLOTS,
    implementations: [
      ...MULTIPLIERS.map(groupedMatmulOver),
      reference(createReferenceGroupedMatmul),
    ],
  },
  {
    name: "scaledMatmul",
    variants: SCALED_MATMUL_VARIANTS,
    slots: SCALED_MATMUL_SLOTS,
    implementations: [...SCALED_MATMUL_IMPLEMENTATIONS, reference(createReferenceScaledMatmul)],
  },
  {
    name: "groupedScaledMatmul",
    variants: SCALED_MATMUL_VARIANTS,
    slots: GROUPED_SCALED_MATMUL_SLOTS,
    implementations: [
      ...GROUPED_SCALED_MATMUL_IMPLEMENTATIONS,
      reference(createReferenceGroupedScaledMatmul),
    ],
  },
  {
    name: "codedMatmul",
    variants: CODED_MATMUL_VARIANTS,
    slots: CODED_MATMUL_SLOTS,
    implementations: [...CODED_MATMUL_IMPLEMENTATIONS, reference(createReferenceCodedMatmul)],
  },
  {
    name: "quantizeTiles",
    variants: QUANTIZE_TILES_VARIANTS,
    slots: QUANTIZE_TILES_SLOTS,
    implementations: [
      X64_QUANTIZE_TILES,
      WASM_QUANTIZE_TILES,
      reference(createReferenceQuantizeTiles),
    ],
  },
  {
    name: "dequantizeTiles",
    variants: DEQUANTIZE_TILES_VARIANTS,
    slots: DEQUANTIZE_TILES_SLOTS,
    implementations: [
      X64_DEQUANTIZE_TILES,
      WASM_DEQUANTIZE_TILES,
      reference(createReferenceDequantizeTiles),
    ],
  },
  {
    name: "retile",
    variants: RETILE_VARIANTS,
    slots: RETILE_SLOTS,
    implementations: [X64_RETILE, WASM_RETILE, reference(createReferenceRetile)],
  },
  {
    name: "makeTiles",
    variants: MAKE_TILES_VARIANTS,
    slots: MAKE_TILES_SLOTS,
    implementations: kernelOfSteps(createMakeTiles),
  },
  {
    name: "swigluTiles",
    variants: SWIGLU_TILES_VARIANTS,
    slots: SWIGLU_TILES_SLOTS,
    implementations: kernelOfSteps(createSwigluTiles),
  },
  {
    name: "swigluTilesBackward",
    variants: SWIGLU_TILES_VARIANTS,
    slots: SWIGLU_TILES_BACKWARD_SLOTS,
    implementations: kernelOfSteps(createSwigluTilesBackward),
  },
  {
    name: "causalAttention",
    variants: ATTENTION_VARIANTS,
    slots: ATTENTION_SLOTS,
    implementations: [...attentionImplementations("forward"), reference(createReferenceAttention)],
  },
  {
    name: "causalAttentionBackward",
    variants: ATTENTION_VARIANTS,
    slots: ATTENTION_SLOTS,
    implementations: [
      ...attentionImplementations("backward"),
      reference(createReferenceAttentionBackward),
    ],
  },
  {
    name: "latentAttention",
    variants: LATENT_ATTENTION_VARIANTS,
    slots: LATENT_ATTENTION_SLOTS,
    implementations: [
      ...LATENT_ATTENTION_IMPLEMENTATIONS,
      reference(createReferenceLatentAttention),
    ],
  },
  declare("route", FLOATS, ROUTE_SLOTS, createReferenceRoute),
  declare("routeBackward", FLOATS, ROUTE_BACKWARD_SLOTS, createReferenceRouteBackward),
  declare("sequenceBalance", FLOATS, SEQUENCE_BALANCE_SLOTS, createReferenceSequenceBalance),
  declare("planDispatch", ["i32"], PLAN_DISPATCH_SLOTS, createReferencePlanDispatch),
  declareRows("scatterAddRows", SCATTER_ADD_VARIANTS, createReferenceScatterAddRows),
  declareRows("castRows", CAST_ROWS_VARIANTS, createReferenceCastRows),
  declareRows("rmsNorm", RMS_NORM_VARIANTS, createReferenceRmsNorm),
  declareRows("rmsNormBackward", RMS_NORM_BACKWARD_VARIANTS, createReferenceRmsNormBackward),
  declareRows("sumPartials", SUM_PARTIALS_VARIANTS, createReferenceSumPartials),
  declareRows("swiglu", SWIGLU_VARIANTS, createReferenceSwiglu),
  declareRows("swigluBackward", SWIGLU_VARIANTS, createReferenceSwigluBackward),
  declareRows("rope", ROPE_VARIANTS, createReferenceRope),
  declareRows("softmaxCausal", SOFTMAX_VARIANTS, createReferenceSoftmaxCausal),
  declareRows("softmaxBackward", SOFTMAX_VARIANTS, createReferenceSoftmaxBackward),
  declareRows("crossEntropy", CROSS_ENTROPY_VARIANTS, createReferenceCrossEntropy),
  declareRows("accumulate", ACCUMULATE_VARIANTS, createReferenceAccumulate),
  declareRows("addRows", ADD_ROWS_VARIANTS, createReferenceAddRows),
  declareRows("lerp", LERP_VARIANTS, createReferenceLerp),
  declareRows("sumSlices", SUM_SLICES_VARIANTS, createReferenceSumSlices),
  declareRows("gatherRows", GATHER_ROWS_VARIANTS, createReferenceGatherRows),
  declareRows("gatherBytes", GATHER_BYTES_VARIANTS, createReferenceGatherBytes),
  declareRows("scatterRows", SCATTER_ROWS_VARIANTS, createReferenceScatterRows),
  declareRows("combineRows", COMBINE_ROWS_VARIANTS, createReferenceCombineRows),
  declareRows("adamw", ADAMW_VARIANTS, createReferenceAdamw),
  declareRows("sumSquares", SUM_SQUARES_VARIANTS, createReferenceSumSquares),
];
