/**
 * @file Forward and backward of a part of a model: a run of blocks, with the embedding before it or
 * the exit (final norm, head, MTP modules) behind it, or both, which is the whole model.
 *
 * What crosses to the next part is the residual stream, and its gradient back. Forward keeps the
 * stream before every block. Backward starts at the last MTP module: each head runs forward and
 * backward at once just before the gradient it starts is used. Two tensors carry all gradients of
 * hidden states. All of it is work that yields where experts wait for other ranks.
 */
import { assert, defined } from "../base/errors.ts";
import { divExact } from "../base/integers.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import type { Work } from "../parallel/communicator/work.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import { balanceLossOf } from "./balance-loss.ts";
import { type Block, type BlockSaved, moeStateOf } from "./block.ts";
import type { Embedding } from "./embedding.ts";
import { expertLoadOf } from "./gate.ts";
import type { Head, HeadLoss, HeadRows } from "./head.ts";
import type { Batch, StepOptions, StepResult } from "./model-types.ts";
import type { MtpModule, MtpSaved } from "./mtp.ts";
import type { RmsNorm } from "./norm.ts";
import type { Pass } from "./pass.ts";

/** What turns the stream behind the last block into losses. */
export interface ExitLayers {
  readonly norm: RmsNorm;
  readonly head: Head;
  readonly mtpModules: readonly MtpModule[];
}

/** The layers of a part, in the order of the forward pass. */
export interface PartLayers {
  /** null: the part begins with a stream that another one made. */
  readonly embedding: Embedding | null;
  readonly blocks: readonly Block[];
  /** null: the part ends with a stream for another one. */
  readonly exit: ExitLayers | null;
}

/** What the gates did, layer by layer. */
export interface Routing {
  readonly expertLoad: readonly Int32Array[];
  /** Unweighted; zeros if the pass has no balance loss. */
  readonly balanceLosses: readonly number[];
}

export interface Trunk {
  /** Empty if nothing is kept. */
  readonly blocks: readonly BlockSaved[];
  /** The stream after the last block. */
  readonly out: Tensor<FloatType>;
}

/** What a forward pass leaves; its tensors live in `saved`, but for those of the call. */
export interface PartForward {
  /** What the embedding reads, [1, T]; null without one. */
  readonly tokens: Tensor<"i32"> | null;
  /** Entry j holds the tokens j + 1 places further on; empty without an exit. */
  readonly targets: readonly Tensor<"i32">[];
  readonly trunk: Trunk;
  readonly modules: readonly MtpSaved[];
}

export interface PartForwardCall {
  readonly batch: Batch;
  /** null with an embedding. Must stay unchanged until the backward pass is over. */
  readonly input: Tensor<FloatType> | null;
  /** Where the stream goes; null where nobody but this part reads it. */
  readonly output: Tensor<FloatType> | null;
}

/** Forward through the part, without the heads; keeps what a backward pass needs. */
export function* forwardPart(
  part: PartLayers,
  pass: Pass,
  call: PartForwardCall,
): Work<PartForward> {
  const { embedding, exit } = part;
  const numShifts = exit === null ? 0 : exit.mtpModules.length + 1;
  const tokens = embedding === null ? null : shiftTokens(pass, call.batch, 0);
  const targets = Array.from({ length: numShifts }, (_, index) =>
    shiftTokens(pass, call.batch, index + 1),
  );
  const { input, output } = call;
  const trunk = yield* forwardTrunk(part, pass, { tokens, keep: true, input, output });
  const modules =
    exit === null ? [] : yield* forwardModules(exit, pass, { targets, hidden: trunk.out });
  return { tokens, targets, trunk, modules };
}

/** The tokens `shift` places further on, [1, T]. */
export function shiftTokens(pass: Pass, batch: Batch, shift: number): Tensor<"i32"> {
  const out = pass.saved.allocate("i32", [1, batch.numSequences * batch.seqLength]);
  fillShifted(out, batch, shift);
  return out;
}

function fillShifted(out: Tensor<"i32">, batch: Batch, shift: number): void {
  const { numSequences, seqLength, tokens } = batch;
  const rowLength = divExact(tokens.length, numSequences);
  const shifted = view(out);
  for (let sequence = 0; sequence < numSequences; sequence++) {
    const start = sequence * rowLength + shift;
    shifted.set(tokens.subarray(start, start + seqLength), sequence * seqLength);
  }
}

/** Tokens and targets of another batch in place of those of the pass's own. */
export function refillTokens({ tokens, targets }: PartForward, batch: Batch): void {
  if (tokens !== null) fillShifted(tokens, batch, 0);
  for (const [index, out] of targets.entries()) fillShifted(out, batch, index + 1);
}

/** The part's blocks, and its embedding. */
export function* forwardTrunk(
  { embedding, blocks }: PartLayers,
  pass: Pass,
  call: Omit<PartForwardCall, "batch"> & {
    readonly tokens: Tensor<"i32"> | null;
    /** Whether a backward pass may follow. */
    readonly keep: boolean;
  },
): Work<Trunk> {
  const { tokens, keep, input, output } = call;
  const allocate = (): Tensor<FloatType> => {
    const { columns } = blocks[0]?.attentionNorm.gain.value ?? defined(input, "the stream");
    return pass.saved.allocate(pass.floatType, [pass.numSequences * pass.seqLength, columns]);
  };
  let x = input ?? allocate();
  let spare: Tensor<FloatType> | null = keep ? null : allocate();
  if (embedding !== null) embedding.forward(pass, defined(tokens, "tokens"), x);
  const kept: BlockSaved[] = [];
  for (const [index, block] of blocks.entries()) {
    const last = index === blocks.length - 1 ? output : null;
    const out: Tensor<FloatType> = last ?? spare ?? allocate();
    using mark = keep ? null : pass.saved.mark();
    const state = yield* block.forwardWork(pass, x, out);
    if (mark === null) kept.push(state);
    else spare = x;
    x = out;
  }
  assert(output === null || x === output, "a part without an exit has blocks");
  return { blocks: kept, out: x };
}

function* forwardModules(
  { mtpModules, norm }: ExitLayers,
  pass: Pass,
  call: {
    readonly targets: readonly Tensor<"i32">[];
    readonly hidden: Tensor<FloatType>;
  },
): Work<readonly MtpSaved[]> {
  if (mtpModules.length === 0) return [];
  let hidden = pass.saved.allocate(pass.floatType, [call.hidden.rows, call.hidden.columns]);
  norm.forward(pass, call.hidden, hidden);
  const states: MtpSaved[] = [];
  for (const [index, module] of mtpModules.entries()) {
    const state = yield* module.forwardWork(pass, { hidden, tokens: call.targets[index]! });
    hidden = state.out;
    states.push(state);
  }
  return states;
}

/** What the gates of a forward pass that is over did. */
export function readRouting({ trunk, modules }: PartForward): Routing {
  const blocks = [...trunk.blocks, ...modules.map(({ block }) => block)];
  const gates = blocks.flatMap((state) => moeStateOf(state)?.gate ?? []);
  return {
    expertLoad: gates.map(expertLoadOf),
    balanceLosses: gates.map(({ balance }) => balanceLossOf(balance)),
  };
}

/** The main head's losses, then those of the MTP modules. */
export function headLosses(
  { norm, head, mtpModules }: ExitLayers,
  pass: Pass,
  { targets, trunk, modules }: PartForward,
  { zLoss }: StepOptions,
): readonly HeadRows[] {
  const streams = [trunk.out, ...modules.map((state) => state.out)];
  const norms = [norm, ...mtpModules.map((module) => module.outputNorm)];
  return streams.map((stream, index) => {
    using _mark = pass.scratch.mark();
    const input = norms[index]!.compute(pass, pass.scratch, stream);
    return head.loss(pass, { input, targets: targets[index]!, zLoss });
  });
}

export interface PartBackwardCall {
  readonly options: StepOptions;
  /** The gradient of the output; null with an exit. Overwritten. */
  readonly dOutput: Tensor<FloatType> | null;
  /** Overwritten by the gradient of the input; null with an embedding. */
  readonly dInput: Tensor<FloatType> | null;
}

/** Heads and backward of everything; the losses as `headLosses` orders them, none without exit. */
export function* backwardPart(
  part: PartLayers,
  pass: Pass,
  forward: PartForward,
  { options, dOutput, dInput }: PartBackwardCall,
): Work<readonly HeadRows[]> {
  const { embedding, blocks, exit } = part;
  const { trunk, tokens } = forward;
  const gradients =
    exit === null
      ? { heads: [], dStream: defined(dOutput, "the gradient of the part's output") }
      : yield* backwardExit(exit, pass, forward, options);
  const { heads, dStream } = gradients;
  for (let index = blocks.length - 1; index >= 0; index--) {
    yield* blocks[index]!.backwardWork(pass, trunk.blocks[index]!, dStream);
  }
  if (embedding !== null) embedding.backward(pass, defined(tokens, "tokens"), dStream);
  else castRows(pass.device, { x: dStream, out: defined(dInput, "the gradient of the input") });
  return heads;
}

/** The losses, and the gradient of the stream behind the last block. */
function* backwardExit(
  { norm, head, mtpModules }: ExitLayers,
  pass: Pass,
  { targets, trunk, modules }: PartForward,
  options: StepOptions,
): Work<{ readonly heads: readonly HeadRows[]; readonly dStream: Tensor<FloatType> }> {
  const { rows, columns } = trunk.out;
  const gradScale = (options.lossScale ?? 1) / rows;
  const heads: HeadRows[] = [];
  // What is known of the gradient of the module's output, and where its input's will go; they
  // change places.
  let dOut = pass.saved.allocate(pass.floatType, [rows, columns]);
  let dHidden = pass.saved.allocate(pass.floatType, [rows, columns]);
  for (let index = mtpModules.length - 1; index >= 0; index--) {
    using _mark = pass.scratch.mark();
    const module = mtpModules[index]!;
    const state = modules[index]!;
    const dNormed = pass.scratch.allocate(pass.floatType, [rows, columns]);
    heads[index + 1] = head.lossAndGradient(pass, {
      input: module.outputNorm.compute(pass, pass.scratch, state.out),
      targets: targets[index + 1]!,
      zLoss: options.zLoss,
      gradScale: (gradScale * options.mtpWeight) / mtpModules.length,
      dInput: dNormed,
      mode: "overwrite",
    });
    const isLast = index === mtpModules.length - 1;
    const mode = isLast ? "overwrite" : "accumulate";
    module.outputNorm.backward(pass, { x: state.out, dOut: dNormed, dX: dOut, mode });
    yield* module.backwardWork(pass, state, { dOut, dHidden });
    [dOut, dHidden] = [dHidden, dOut];
  }
  using _mark = pass.scratch.mark();
  heads[0] = head.lossAndGradient(pass, {
    input: norm.compute(pass, pass.scratch, trunk.out),
    targets: targets[0]!,
    zLoss: options.zLoss,
    gradScale,
    dInput: dOut,
    mode: mtpModules.length > 0 ? "accumulate" : "overwrite",
  });
  const dStream = dHidden;
  norm.backward(pass, { x: trunk.out, dOut, dX: dStream, mode: "overwrite" });
  return { heads, dStream };
}

/** What a micro-batch's losses come to: `heads` as `headLosses` orders them. */
export function summarise(
  heads: readonly Pick<HeadLoss, "loss" | "objective">[],
  { expertLoad, balanceLosses }: Routing,
  numTokens: number,
  { mtpWeight, balanceWeight }: StepOptions,
): StepResult {
  const [main, ...modules] = heads;
  const perModule = modules.length === 0 ? 0 : mtpWeight / modules.length;
  const ahead = modules.reduce((sum, head) => sum + head.objective, 0) * perModule;
  const balanceLoss = balanceLosses.reduce((sum, loss) => sum + loss, 0);
  return {
    loss: main!.loss / numTokens,
    mtpLosses: modules.map((head) => head.loss / numTokens),
    balanceLoss,
    objective: (main!.objective + ahead) / numTokens + balanceWeight * balanceLoss,
    expertLoad,
  };
}
