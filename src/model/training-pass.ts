/**
 * @file One pass over one batch: forward through the main model and the MTP modules, losses, and
 * backward.
 *
 *     objective = loss + λ/D · Σ_k mtpLoss_k + z-losses (weighted alike) + α · Σ_layers balanceLoss
 *
 * Forward keeps the residual stream before every block. Backward starts at the last MTP module:
 * each head runs forward and backward at once just before the gradient it starts is used. Two
 * tensors carry all gradients of hidden states.
 */
import { divExact } from "../base/integers.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { fillFrom } from "../tensor/view.ts";
import { type Block, type BlockSaved, moeStateOf } from "./block.ts";
import { expertLoadOf } from "./dispatch-plan.ts";
import type { Embedding } from "./embedding.ts";
import type { Head, HeadLoss } from "./head.ts";
import type { Batch, StepOptions, StepResult } from "./model-types.ts";
import type { MtpModule, MtpSaved } from "./mtp.ts";
import type { RmsNorm } from "./norm.ts";
import type { Pass } from "./pass.ts";

/** The layers of a model, in the order of the forward pass. */
export interface ModelLayers {
  readonly embedding: Embedding;
  readonly blocks: readonly Block[];
  readonly norm: RmsNorm;
  readonly head: Head;
  readonly mtpModules: readonly MtpModule[];
}

/** What the gates did, gathered layer by layer. */
interface Routing {
  readonly expertLoad: Int32Array[];
  balanceLoss: number;
}

interface Trunk {
  /** Empty if nothing is kept. */
  readonly blocks: readonly BlockSaved[];
  /** The stream after the last block. */
  readonly out: Tensor<FloatType>;
}

/** Loss of a batch and, if asked for, gradients. */
export function runTrainingPass(
  layers: ModelLayers,
  pass: Pass,
  batch: Batch,
  options: StepOptions,
): StepResult {
  const forward = runForward(layers, pass, batch, { keep: options.computeGradients });
  const turn = { ...forward, options };
  const heads = options.computeGradients
    ? backward(layers, pass, turn)
    : headLosses(layers, pass, turn);
  return summarise(heads, forward.routing, pass, options);
}

/** What a forward pass leaves; its tensors live in `saved`. */
export interface Forward {
  /** Entry j holds the tokens j places further on. */
  readonly tokens: readonly Tensor<"i32">[];
  readonly trunk: Trunk;
  readonly modules: readonly MtpSaved[];
  readonly routing: Routing;
}

/** Forward through the main model and the MTP modules, without the heads. */
export function runForward(
  layers: ModelLayers,
  pass: Pass,
  batch: Batch,
  { keep }: { readonly keep: boolean },
): Forward {
  const tokens = shiftTokens(pass, batch, layers.mtpModules.length);
  const routing: Routing = { expertLoad: [], balanceLoss: 0 };
  const trunk = forwardTrunk(layers, pass, { tokens: tokens[0]!, keep, routing });
  const modules = forwardModules(layers, pass, { tokens, hidden: trunk.out, routing });
  return { tokens, trunk, modules, routing };
}

/** −ln p of each next token. */
export function runEvaluation(layers: ModelLayers, pass: Pass, batch: Batch): Float32Array {
  const [inputs, targets] = shiftTokens(pass, batch, layers.mtpModules.length);
  const trunk = forwardTrunk(layers, pass, { tokens: inputs!, keep: false, routing: null });
  const input = layers.norm.compute(pass, pass.scratch, trunk.out);
  return Float32Array.from(layers.head.loss(pass, { input, targets: targets!, zLoss: 0 }).losses);
}

/** Entry j holds the tokens j places further on, [1, T]; j = 0..numModules + 1. */
function shiftTokens(pass: Pass, batch: Batch, numModules: number): readonly Tensor<"i32">[] {
  const { numSequences, seqLength, tokens } = batch;
  const rowLength = divExact(tokens.length, numSequences);
  return Array.from({ length: numModules + 2 }, (_, shift) => {
    const shifted = new Int32Array(numSequences * seqLength);
    for (let sequence = 0; sequence < numSequences; sequence++) {
      const start = sequence * rowLength + shift;
      shifted.set(tokens.subarray(start, start + seqLength), sequence * seqLength);
    }
    const out = pass.saved.allocate("i32", [1, shifted.length]);
    fillFrom(out, shifted);
    return out;
  });
}

function forwardTrunk(
  { embedding, blocks }: ModelLayers,
  pass: Pass,
  call: {
    readonly tokens: Tensor<"i32">;
    readonly keep: boolean;
    readonly routing: Routing | null;
  },
): Trunk {
  const { tokens, keep, routing } = call;
  const allocate = (): Tensor<FloatType> =>
    pass.saved.allocate(pass.floatType, [tokens.columns, embedding.table.shape[1]]);
  let x = allocate();
  let spare: Tensor<FloatType> | null = keep ? null : allocate();
  embedding.forward(pass, tokens, x);
  const kept: BlockSaved[] = [];
  for (const block of blocks) {
    const out: Tensor<FloatType> = spare ?? allocate();
    using mark = keep ? null : pass.saved.mark();
    const state = block.forward(pass, x, out);
    if (routing !== null) noteRouting(routing, state);
    if (mark === null) kept.push(state);
    else spare = x;
    x = out;
  }
  return { blocks: kept, out: x };
}

function noteRouting(routing: Routing, state: BlockSaved): void {
  const moe = moeStateOf(state);
  if (moe === null) return;
  routing.expertLoad.push(expertLoadOf(moe.plan));
  routing.balanceLoss += moe.gate.balance?.loss ?? 0;
}

function forwardModules(
  { mtpModules, norm }: ModelLayers,
  pass: Pass,
  call: {
    readonly tokens: readonly Tensor<"i32">[];
    readonly hidden: Tensor<FloatType>;
    readonly routing: Routing;
  },
): readonly MtpSaved[] {
  if (mtpModules.length === 0) return [];
  let hidden = pass.saved.allocate(pass.floatType, [call.hidden.rows, call.hidden.columns]);
  norm.forward(pass, call.hidden, hidden);
  return mtpModules.map((module, index) => {
    const state = module.forward(pass, { hidden, tokens: call.tokens[index + 1]! });
    noteRouting(call.routing, state.block);
    hidden = state.out;
    return state;
  });
}

interface Turn extends Forward {
  readonly options: StepOptions;
}

/** The main head's losses, then those of the MTP modules. */
function headLosses(layers: ModelLayers, pass: Pass, turn: Turn): readonly HeadLoss[] {
  const { tokens, trunk, modules, options } = turn;
  const streams = [trunk.out, ...modules.map((state) => state.out)];
  const norms = [layers.norm, ...layers.mtpModules.map((module) => module.outputNorm)];
  return streams.map((stream, index) => {
    using _mark = pass.scratch.mark();
    const input = norms[index]!.compute(pass, pass.scratch, stream);
    const targets = tokens[index + 1]!;
    return layers.head.loss(pass, { input, targets, zLoss: options.zLoss });
  });
}

/** Heads and backward of everything; the losses as `headLosses` orders them. */
function backward(layers: ModelLayers, pass: Pass, turn: Turn): readonly HeadLoss[] {
  const { embedding, blocks, norm, head, mtpModules } = layers;
  const { tokens, trunk, modules, options } = turn;
  const { rows, columns } = trunk.out;
  const gradScale = (options.lossScale ?? 1) / rows;
  const headLoss: HeadLoss[] = [];
  // What is known of the gradient of the module's output, and where its input's will go; they
  // change places.
  let dOut = pass.saved.allocate(pass.floatType, [rows, columns]);
  let dHidden = pass.saved.allocate(pass.floatType, [rows, columns]);
  for (let index = mtpModules.length - 1; index >= 0; index--) {
    using _mark = pass.scratch.mark();
    const module = mtpModules[index]!;
    const state = modules[index]!;
    const dNormed = pass.scratch.allocate(pass.floatType, [rows, columns]);
    headLoss[index + 1] = head.lossAndGradient(pass, {
      input: module.outputNorm.compute(pass, pass.scratch, state.out),
      targets: tokens[index + 2]!,
      zLoss: options.zLoss,
      gradScale: (gradScale * options.mtpWeight) / mtpModules.length,
      dInput: dNormed,
      mode: "overwrite",
    });
    const isLast = index === mtpModules.length - 1;
    const mode = isLast ? "overwrite" : "accumulate";
    module.outputNorm.backward(pass, { x: state.out, dOut: dNormed, dX: dOut, mode });
    module.backward(pass, state, { dOut, dHidden });
    [dOut, dHidden] = [dHidden, dOut];
  }
  using _mark = pass.scratch.mark();
  headLoss[0] = head.lossAndGradient(pass, {
    input: norm.compute(pass, pass.scratch, trunk.out),
    targets: tokens[1]!,
    zLoss: options.zLoss,
    gradScale,
    dInput: dOut,
    mode: mtpModules.length > 0 ? "accumulate" : "overwrite",
  });
  const dStream = dHidden;
  norm.backward(pass, { x: trunk.out, dOut, dX: dStream, mode: "overwrite" });
  for (let index = blocks.length - 1; index >= 0; index--) {
    blocks[index]!.backward(pass, trunk.blocks[index]!, dStream);
  }
  embedding.backward(pass, tokens[0]!, dStream);
  return headLoss;
}

function summarise(
  heads: readonly HeadLoss[],
  routing: Routing,
  { numSequences, seqLength }: Pass,
  { mtpWeight, balanceWeight }: StepOptions,
): StepResult {
  const numTokens = numSequences * seqLength;
  const [main, ...modules] = heads;
  const perModule = modules.length === 0 ? 0 : mtpWeight / modules.length;
  const ahead = modules.reduce((sum, head) => sum + head.objective, 0) * perModule;
  return {
    loss: main!.loss / numTokens,
    mtpLosses: modules.map((head) => head.loss / numTokens),
    balanceLoss: routing.balanceLoss,
    objective: (main!.objective + ahead) / numTokens + balanceWeight * routing.balanceLoss,
    expertLoad: routing.expertLoad,
  };
}
