/**
 * @file Finding what went wrong in a step: the layer and tensor behind a value that is not finite,
 * or behind a spike.
 *
 * A step whose loss or gradient norm is not finite is not applied: the run ends with
 * `training.nonfinite`, and its last checkpoint holds the state before. The search goes from cause
 * to effect. A parameter that is itself not finite comes first. A loss that is not finite makes
 * every gradient NaN, so the forward pass is run again and the first of its streams that is not
 * finite names the part; if all are finite, the logits overflowed. With finite losses, it is the
 * gradient nearest to the loss: backward runs from the head down, and what stands above is still
 * clean. A loss far above its recent mean is only reported.
 */
import { OperationalError } from "../base/errors.ts";
import type { Batch, TrainableModel } from "../model/model-types.ts";
import type { ParameterDeclaration } from "../model/parameter-declarations.ts";
import type { Parameter } from "../model/parameters.ts";
import { view } from "../tensor/view.ts";

/**
 * A tensor and where in the model it belongs: "layer 3", "MTP module 0", or "" outside of all
 * blocks.
 */
export interface Culprit {
  readonly tensor: string;
  readonly layer: string;
  /** What about it. */
  readonly finding: string;
}

/** Where a tensor of this name belongs. */
export function layerOf(tensor: string): string {
  const [part, index] = tensor.split(".");
  if (part === "layers") return `layer ${index}`;
  return part === "mtp" ? `MTP module ${index}` : "";
}

/** What is asked of a model whose step went wrong. */
export type Suspect = Pick<TrainableModel, "parameters" | "evaluate" | "findBrokenStream">;

/** The error for a step with a loss that is not finite on `batch`. */
export function nonFiniteLossError(
  model: Suspect,
  step: number,
  loss: number,
  batch: Batch,
): OperationalError {
  const culprit =
    firstNonFiniteValue(model.parameters.list) ?? brokenStream(model, batch) ?? LOGITS;
  const subject = `the loss (${loss}, ${firstPosition(model, batch)})`;
  return stepError(step, subject, culprit, { loss, gradNorm: undefined });
}

/** Values that are not finite, of each parameter in the order of `declareParameters`. */
export interface NonFiniteCounts {
  readonly values: ArrayLike<number>;
  readonly gradients: ArrayLike<number>;
}

/** The error for a step with a finite loss and a gradient norm that is not. */
export function nonFiniteGradientError(
  declarations: readonly Pick<ParameterDeclaration, "name" | "shape">[],
  step: number,
  counts: NonFiniteCounts,
  values: { readonly loss: number; readonly gradNorm: number },
): OperationalError {
  const culprit = (of: ArrayLike<number>, index: number, what: string): Culprit => {
    const { name, shape } = declarations[index]!;
    const finding = `${of[index]} of ${shape[0] * shape[1]} ${what} are not finite`;
    return { tensor: name, layer: layerOf(name), finding };
  };
  const isBroken = (count: number): boolean => count > 0;
  const value = Array.from(counts.values).findIndex(isBroken);
  const gradient = Array.from(counts.gradients).findLastIndex(isBroken);
  const found =
    value >= 0
      ? culprit(counts.values, value, "values")
      : gradient >= 0
        ? culprit(counts.gradients, gradient, "gradients")
        : undefined;
  return stepError(step, `the gradient norm (${values.gradNorm})`, found, values);
}

/** How many elements are not finite. */
export function countNonFinite(elements: ArrayLike<number>): number {
  let count = 0;
  for (let index = 0; index < elements.length; index++) {
    if (!Number.isFinite(elements[index]!)) count++;
  }
  return count;
}

function stepError(
  step: number,
  subject: string,
  culprit: Culprit | undefined,
  values: { readonly loss: number; readonly gradNorm: number | undefined },
): OperationalError {
  const where =
    culprit === undefined
      ? "no single parameter or gradient is to blame: the sum is out of range"
      : describe(culprit);
  return new OperationalError(
    "training.nonfinite",
    `step ${step}: ${subject} is not finite; ${where}. The step was not applied: resume from the ` +
      "last checkpoint with a lower learningRate.peak or optimizer.clipNorm",
    { step, ...values, ...culprit },
  );
}

/** What is left when every stream is finite. */
const LOGITS: Culprit = { tensor: "head", layer: "", finding: "its logits are out of range" };

function brokenStream(model: Suspect, batch: Batch): Culprit | undefined {
  const broken = model.findBrokenStream(batch);
  if (broken === undefined) return undefined;
  const { part, numBroken, numElements } = broken;
  const largest = largestWeight(model.parameters.list, part);
  const finding =
    `the first part whose output is not finite (${numBroken} of ${numElements} values); its ` +
    `largest parameter is ${largest.value.toPrecision(4)}, in ${largest.name}`;
  return { tensor: part, layer: layerOf(part), finding };
}

/** By magnitude, of the part's parameters. */
function largestWeight(
  parameters: readonly Parameter[],
  part: string,
): { readonly name: string; readonly value: number } {
  let largest = { name: part, value: 0 };
  for (const { name, value } of parameters) {
    if (name !== part && !name.startsWith(`${part}.`)) continue;
    for (const element of view(value)) {
      if (Math.abs(element) > Math.abs(largest.value)) largest = { name, value: element };
    }
  }
  return largest;
}

/** Where in the batch the loss is not finite first. */
function firstPosition(model: Pick<TrainableModel, "evaluate">, batch: Batch): string {
  const losses = model.evaluate(batch);
  const at = losses.findIndex((loss) => !Number.isFinite(loss));
  if (at < 0) return "finite for the main head alone";
  const sequence = Math.floor(at / batch.seqLength);
  return `first at position ${at % batch.seqLength} of sequence ${sequence}`;
}

function describe({ tensor, layer, finding }: Culprit): string {
  return layer === "" ? `${tensor}: ${finding}` : `${tensor} (${layer}): ${finding}`;
}

function firstNonFiniteValue(parameters: readonly Parameter[]): Culprit | undefined {
  for (const { name, value } of parameters) {
    const elements = view(value);
    const count = countNonFinite(elements);
    if (count > 0) {
      const finding = `${count} of ${elements.length} values are not finite`;
      return { tensor: name, layer: layerOf(name), finding };
    }
  }
  return undefined;
}

/**
 * The tensor with the longest gradient: where to look first when the loss has jumped. `squares` are
 * those of the gradients of each parameter.
 */
export function longestGradient(names: readonly string[], squares: ArrayLike<number>): Culprit {
  const longest = Math.max(...Array.from(squares));
  const tensor = names[Array.from(squares).indexOf(longest)] ?? "";
  const finding = `the longest gradient, of norm ${Math.sqrt(longest).toPrecision(4)}`;
  return { tensor, layer: layerOf(tensor), finding };
}

/** Recent mean and variance of the loss; plain data, for the checkpoint. */
export interface LossTrend {
  readonly count: number;
  readonly mean: number;
  readonly variance: number;
}

export const EMPTY_TREND: LossTrend = { count: 0, mean: 0, variance: 0 };

/** Steps that the trend looks back over. */
const TREND_STEPS = 50;

/** The trend with one more loss in it. */
export function extendTrend(trend: LossTrend, loss: number): LossTrend {
  const count = trend.count + 1;
  const weight = 1 / Math.min(count, TREND_STEPS);
  const difference = loss - trend.mean;
  return {
    count,
    mean: trend.mean + weight * difference,
    variance: (1 - weight) * (trend.variance + weight * difference * difference),
  };
}

/**
 * Whether the loss stands `deviations` standard deviations above the trend; 0 deviations never do.
 */
export function isSpike(trend: LossTrend, loss: number, deviations: number): boolean {
  if (deviations === 0 || trend.count < TREND_STEPS) return false;
  return loss > trend.mean + deviations * Math.sqrt(trend.variance);
}
