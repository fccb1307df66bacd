/**
 * @file Passes of the whole model over one batch: losses with and without gradients.
 *
 *     objective = loss + λ/D · Σ_k mtpLoss_k + z-losses (weighted alike) + α · Σ_layers balanceLoss
 *
 * part-pass.ts has forward and backward.
 */
import { finish } from "../parallel/communicator/work.ts";
import type { Block } from "./block.ts";
import type { Embedding } from "./embedding.ts";
import { type HeadRows, readLosses } from "./head.ts";
import type { Batch, StepOptions, StepResult } from "./model-types.ts";
import {
  backwardPart,
  type ExitLayers,
  forwardPart,
  forwardTrunk,
  headLosses,
  type PartForward,
  type PartLayers,
  readRouting,
  shiftTokens,
  summarise,
} from "./part-pass.ts";
import type { Pass } from "./pass.ts";

/** The layers of a model, in the order of the forward pass. */
export interface ModelLayers extends ExitLayers {
  readonly embedding: Embedding;
  readonly blocks: readonly Block[];
}

/** The model as one part. */
function wholeOf(layers: ModelLayers): PartLayers & { readonly exit: ExitLayers } {
  return { embedding: layers.embedding, blocks: layers.blocks, exit: layers };
}

/** A pass whose launches are over; what it came to stands in `saved`. */
export interface TrainingPass {
  readonly pass: Pass;
  readonly forward: PartForward;
  readonly heads: readonly HeadRows[];
}

/** Losses of a batch and, if asked for, gradients. */
export function runTrainingPass(
  layers: ModelLayers,
  pass: Pass,
  batch: Batch,
  options: StepOptions,
): TrainingPass {
  const forward = runForward(layers, pass, batch);
  const heads = options.computeGradients
    ? finish(backwardPart(wholeOf(layers), pass, forward, { options, dOutput: null, dInput: null }))
    : headLosses(layers, pass, forward, options);
  pass.weightGrads.run();
  return { pass, forward, heads };
}

/** What a pass came to. */
export function readResult(
  { pass, forward, heads }: TrainingPass,
  options: StepOptions,
): StepResult {
  const numTokens = pass.numSequences * pass.seqLength;
  return summarise(heads.map(readLosses), readRouting(forward), numTokens, options);
}

/** Forward through the main model and the MTP modules, without the heads. */
export function runForward(layers: ModelLayers, pass: Pass, batch: Batch): PartForward {
  return finish(forwardPart(wholeOf(layers), pass, { batch, input: null, output: null }));
}

/** −ln p of each next token. */
export function runEvaluation(layers: ModelLayers, pass: Pass, batch: Batch): Float32Array {
  const tokens = shiftTokens(pass, batch, 0);
  const targets = shiftTokens(pass, batch, 1);
  const call = { tokens, keep: false, input: null, output: null };
  const trunk = finish(forwardTrunk(wholeOf(layers), pass, call));
  const input = layers.norm.compute(pass, pass.scratch, trunk.out);
  const rows = layers.head.loss(pass, { input, targets, zLoss: 0 });
  return Float32Array.from(readLosses(rows).losses);
}
