/** @file The row program of every row kernel, by the name and the variant of its declaration. */
import {
  accumulateProgram,
  addRowsProgram,
  lerpProgram,
  sumSlicesProgram,
} from "./accumulate/program.ts";
import { adamwProgram, sumSquaresProgram } from "./adamw/program.ts";
import { castRowsProgram } from "./cast-rows/program.ts";
import { crossEntropyProgram } from "./cross-entropy/program.ts";
import {
  combineRowsProgram,
  gatherBytesProgram,
  gatherRowsProgram,
  scatterAddRowsProgram,
  scatterRowsProgram,
} from "./gather/program.ts";
import { rmsNormBackwardProgram, rmsNormProgram, sumPartialsProgram } from "./rms-norm/program.ts";
import { ropeProgram } from "./rope/program.ts";
import type { RowProgramOf } from "./row-kernel.ts";
import { softmaxBackwardProgram, softmaxCausalProgram } from "./softmax/program.ts";
import { swigluBackwardProgram, swigluProgram } from "./swiglu/program.ts";

export type RowKernelName =
  | ("castRows" | "rmsNorm" | "rmsNormBackward" | "sumPartials" | "swiglu" | "swigluBackward")
  | ("rope" | "softmaxCausal" | "softmaxBackward" | "crossEntropy")
  | (
      | "accumulate"
      | "addRows"
      | "lerp"
      | "sumSlices"
      | "gatherBytes"
      | "gatherRows"
      | "combineRows"
      | "scatterAddRows"
      | "scatterRows"
    )
  | ("adamw" | "sumSquares");

export const ROW_PROGRAMS: Readonly<Record<RowKernelName, RowProgramOf>> = {
  castRows: castRowsProgram,
  rmsNorm: rmsNormProgram,
  rmsNormBackward: rmsNormBackwardProgram,
  sumPartials: sumPartialsProgram,
  swiglu: swigluProgram,
  swigluBackward: swigluBackwardProgram,
  rope: ropeProgram,
  softmaxCausal: softmaxCausalProgram,
  softmaxBackward: softmaxBackwardProgram,
  crossEntropy: crossEntropyProgram,
  accumulate: accumulateProgram,
  addRows: addRowsProgram,
  lerp: lerpProgram,
  sumSlices: sumSlicesProgram,
  gatherBytes: gatherBytesProgram,
  gatherRows: gatherRowsProgram,
  combineRows: combineRowsProgram,
  scatterAddRows: scatterAddRowsProgram,
  scatterRows: scatterRowsProgram,
  adamw: adamwProgram,
  sumSquares: sumSquaresProgram,
};
