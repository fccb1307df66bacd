/**
 * @file The routed experts of a layer on several ranks: their tokens are dispatched to them and
 * their results combined, as the recipe says both cross ranks.
 *
 *     forward    choice, weights, x       ─dispatch─▶  experts  ─combine─▶  Σ of results
 *     backward   gradient of the output   ─dispatch─▶  experts  ─combine─▶  gradients of x, weights
 *
 * Each rank has tokens of its own. Under a scaled recipe x and the output's gradient go as FP8
 * codes with the scales of their tiles, which stay as they are: the experts read what one process
 * would. Results and the input's gradient come back in the recipe's `combine`; routing weights and
 * their gradients are floats. Saved beside what experts save: the tokens that came, as they came.
 * A model that infers may have results come back choice by choice; one that trains computes its
 * shared experts while they come. Everything yields what it waits for. Sources: DeepSeek-V3 report
 * §3.2.2, §3.3.3.
 */
import { OperationalError } from "../base/errors.ts";
import { divExact, floorDiv } from "../base/integers.ts";
import { accumulate } from "../kernels/accumulate/contract.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import { combineRows } from "../kernels/gather/contract.ts";
import { alongside, finish, type Work } from "../parallel/communicator/work.ts";
import type { ExchangePlan } from "../parallel/expert/exchange/exchange-plan.ts";
import type {
  Announced,
  Dispatched,
  ExpertExchange,
} from "../parallel/expert/exchange/expert-exchange.ts";
import type { SumType } from "../parallel/expert/exchange/hop.ts";
import type { LivePlacement } from "../parallel/expert/placement/live-placement.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { makeScaled, type ScaledTensor } from "../tensor/scaled-tensor.ts";
import { reshape, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import { makeReceivedPlan } from "./dispatch-plan.ts";
import type { ExpertShare } from "./expert-share.ts";
import type { ExpertsSaved, RoutedExperts } from "./experts.ts";
import { gatherOperand, isScaled, type Operand, operandOf } from "./operand.ts";
import type { ComputeType } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import { isScaledRecipe, type PrecisionRecipe } from "./precision-recipe.ts";

/** How a layer's tokens get to its experts, and where these are. */
export interface ExpertRanks extends Pick<ExpertShare, "exchange" | "byChoice"> {
  readonly placement: LivePlacement;
}

/** What a layer is told of those who share its experts. */
export function expertRanksOf(share: ExpertShare, layerIndex: number): ExpertRanks {
  const { exchange, byChoice } = share;
  return { exchange, byChoice, placement: share.layer(layerIndex) };
}

export interface RemoteSaved {
  readonly exchange: ExchangePlan;
  readonly experts: ExpertsSaved;
  /** The tokens that came here. */
  readonly input: Operand;
}

/** Own tokens, and where they want to go. */
export interface SentTokens {
  readonly announced: Announced;
  /** Of each choice, [T, K]. */
  readonly weight: Tensor<FloatType>;
  /** [T, D] */
  readonly input: Operand;
}

/** Collective: where this rank's tokens want to go; `choice` is [T, K], the model's experts. */
export function announceChoice(
  { scratch }: Pass,
  { exchange, placement, byChoice }: ExpertRanks,
  choice: Tensor<"i32">,
): Announced {
  const physical = scratch.allocate("i32", choice.shape);
  view(physical).set(placement.toPhysical(view(choice), exchange.rank));
  const numChoices = choice.rows * choice.columns;
  const going = byChoice ? reshape(physical, [numChoices, 1]) : physical;
  return exchange.announce(going, scratch);
}

/** What own tokens become. */
interface ForwardCall {
  readonly tokens: SentTokens;
  /** [T, D]; added to. */
  readonly out: Tensor<FloatType>;
  /** What can be computed while results are on their way back. */
  readonly meanwhile: () => void;
}

/** Collective: adds to `out`. */
export function* forwardOverRanks(
  pass: Pass,
  exchange: ExpertExchange,
  experts: RoutedExperts,
  call: ForwardCall,
): Work<RemoteSaved> {
  const came = yield* dispatchTokens(pass, exchange, call.tokens);
  return yield* forwardCame(pass, exchange, experts, { ...call, came });
}

function dispatchTokens(
  { saved, scratch }: Pass,
  exchange: ExpertExchange,
  { announced, weight, input }: SentTokens,
): Work<Dispatched> {
  const arenas = { out: saved, scratch };
  return exchange.dispatch(announced, [weight, ...partsOf(input)], arenas);
}

/** What experts make of the tokens that came, and its way back. */
function* forwardCame(
  pass: Pass,
  exchange: ExpertExchange,
  experts: RoutedExperts,
  call: ForwardCall & { readonly came: Dispatched },
): Work<RemoteSaved> {
  const { scratch, floatType } = pass;
  const { weight, input } = call.tokens;
  const { plan: toRanks, parts } = call.came;
  const [cameWeight, ...cameInput] = parts;
  const came = operandFrom(input, cameInput);
  const plan = makeReceivedPlan(pass, toRanks.localExperts, {
    numChosen: weight.columns,
    numExperts: experts.numExperts,
  });
  using _mark = scratch.mark();
  const made = scratch.allocateZeros(floatType, [toRanks.numReceived, call.out.columns]);
  const tokens = { plan, input: came, weight: cameWeight as Tensor<FloatType> };
  const state = experts.forward(pass, tokens, { out: made });
  const sums = combinedOf(pass, experts.recipe, made, call.out.rows);
  yield* alongside(exchange.combine(toRanks, [sums], scratch), call.meanwhile);
  accumulate(pass.device, { x: sums.out, scale: 1, out: call.out });
  return { exchange: toRanks, experts: state, input: came };
}

/**
 * The same, each choice going by itself: results are added to `out` in the order of the choices,
 * as in one process.
 */
export function* forwardByChoice(
  pass: Pass,
  ranks: ExpertRanks,
  experts: RoutedExperts,
  call: {
    readonly choice: Tensor<"i32">;
    /** [T, K] */
    readonly weight: Tensor<FloatType>;
    readonly input: Operand;
    readonly out: Tensor<FloatType>;
    /** Where it is counted which experts were chosen, as `DispatchPlan.offsets` has it. */
    readonly offsets: Tensor<"i32"> | undefined;
  },
): Work<void> {
  const { scratch, device, floatType } = pass;
  const { choice, weight, input, out, offsets } = call;
  const { rows, columns } = choice;
  const numChoices = rows * columns;
  const announced = announceChoice(pass, ranks, choice);
  if (offsets !== undefined) countChoices(view(choice), view(offsets));
  const token = scratch.allocate("i32", [1, numChoices]);
  view(token).forEach((_, place, tokenOf) => {
    tokenOf[place] = floorDiv(place, columns);
  });
  const rule = experts.recipe.tensors.dispatch;
  const results = scratch.allocateZeros(floatType, [numChoices, out.columns]);
  yield* forwardOverRanks(pass, ranks.exchange, experts, {
    tokens: {
      announced,
      weight: reshape(weight, [numChoices, 1]),
      input: gatherOperand(pass, scratch, { x: input, index: token, rule }),
    },
    out: results,
    meanwhile: () => {},
  });
  const index = scratch.allocate("i32", [rows, columns]);
  view(index).forEach((_, place, placeOf) => {
    placeOf[place] = place;
  });
  combineRows(device, { src: results, index, out });
}

/**
 * Collective: the part of a rank that has no tokens of its own, of `forwardByChoice`. Waits for
 * tokens, without which there is nothing to do, and yields where results are on their way back.
 */
export function* serveExperts(
  pass: Pass,
  exchange: ExpertExchange,
  experts: RoutedExperts,
): Work<void> {
  const { scratch, floatType, computeType } = pass;
  const { recipe, down, numExperts } = experts;
  const hiddenDim = divExact(down.shape[0], numExperts);
  const x = scratch.allocate(computeType, [0, hiddenDim]);
  const tokens = {
    announced: exchange.announce(scratch.allocate("i32", [0, 1]), scratch),
    weight: scratch.allocate(floatType, [0, 1]),
    input: operandOf(pass, scratch, x, { recipe, use: "dispatch" }),
  };
  const came = finish(dispatchTokens(pass, exchange, tokens));
  const out = scratch.allocate(floatType, [0, hiddenDim]);
  yield* forwardCame(pass, exchange, experts, { tokens, out, meanwhile: () => {}, came });
}

/** First row of each expert, were the choices sorted by expert; behind them their number. */
function countChoices(choices: Int32Array, offsets: Int32Array): void {
  offsets.fill(0);
  for (const expert of choices) offsets[expert + 1]!++;
  for (let expert = 1; expert < offsets.length; expert++) offsets[expert]! += offsets[expert - 1]!;
}

/** Gradients of own tokens. */
export interface SentGradients {
  /** Of the output [T, D], as the recipe dispatches it. */
  readonly dOut: Operand;
  /** Of the weights [T, K]; overwritten. */
  readonly dWeight: Tensor<FloatType>;
}

/** Collective: the gradient of the input [T, D], in scratch. */
export function* backwardOverRanks(
  pass: Pass,
  exchange: ExpertExchange,
  experts: RoutedExperts,
  call: {
    readonly state: RemoteSaved;
    readonly gradients: SentGradients;
    /** What can be computed while results are on their way back. */
    readonly meanwhile: () => void;
  },
): Work<Tensor<SumType>> {
  const { scratch, floatType, device } = pass;
  const { state, gradients, meanwhile } = call;
  const { dOut, dWeight } = gradients;
  const { numReceived } = state.exchange;
  const [rows, columns] = [dWeight.rows, dOut.columns];
  const type = combineType(experts.recipe);
  const dInput = scratch.allocate(type, [rows, columns]);
  using _mark = scratch.mark();
  const arenas = { out: scratch, scratch };
  const came = yield* exchange.dispatchAgain(state.exchange, partsOf(dOut), arenas);
  const made = scratch.allocateZeros(floatType, [numReceived, columns]);
  const madeWeight = scratch.allocate(floatType, [numReceived, dWeight.columns]);
  const dRows = experts.backward(pass, state.experts, {
    input: state.input,
    dOut: operandFrom(dOut, came),
    dWeight: madeWeight,
  });
  combineRows(device, { src: dRows, index: state.experts.plan.rowOfChoice, out: made });
  const sums = { rows: inCombineType(pass, type, made), out: dInput };
  const weights = { rows: madeWeight, out: dWeight };
  yield* alongside(exchange.combine(state.exchange, [sums, weights], scratch), meanwhile);
  return dInput;
}

/** Refuse a recipe whose dispatched rows cannot stand alone. */
export function checkRecipeOverRanks(recipe: PrecisionRecipe): void {
  if (!isScaledRecipe(recipe)) return;
  for (const name of ["dispatch", "dispatchGradient"] as const) {
    const { tile } = recipe.tensors[name];
    if (tile === "1x128" || tile === "row") continue;
    throw new OperationalError(
      "config.value",
      `recipe ${recipe.name}: tensors.${name}.tile (${tile}) must be 1x128 or row where experts ` +
        "are on several ranks: a token's scales go with it",
    );
  }
}

/** Tensors with a row a token each. */
function partsOf(operand: Operand): readonly Tensor[] {
  return isScaled(operand) ? [operand.codes, operand.scales] : [operand];
}

/** The operand that was sent, of the rows that came. */
function operandFrom(sent: Operand, parts: readonly Tensor[]): Operand {
  const [first, scales] = parts;
  if (!isScaled(sent)) return first as Tensor<ComputeType>;
  const shape = { ...sent, rows: first!.rows };
  return makeScaled(shape, { codes: first, scales } as Pick<ScaledTensor, "codes" | "scales">);
}

function combineType({ tensors }: PrecisionRecipe): SumType {
  return tensors.combine.format as SumType;
}

/** What goes back of `made`, and where the sums of `rows` own tokens come. */
function combinedOf(
  pass: Pass,
  recipe: PrecisionRecipe,
  made: Tensor<FloatType>,
  rows: number,
): { readonly rows: Tensor<SumType>; readonly out: Tensor<SumType> } {
  const type = combineType(recipe);
  const out = pass.scratch.allocate(type, [rows, made.columns]);
  return { rows: inCombineType(pass, type, made), out };
}

function inCombineType(pass: Pass, type: SumType, made: Tensor<FloatType>): Tensor<SumType> {
  if (type === made.dtype) return made;
  const rounded = pass.scratch.allocate(type, [made.rows, made.columns]);
  castRows(pass.device, { x: made, out: rounded });
  return rounded;
}
