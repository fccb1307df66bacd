/**
 * @file Finding what went wrong in a step: the layer and tensor behind a value that is not finite,
 * or behind a spike.
 *
 * A step whose loss or gradient norm is not finite is not applied: the run ends with
 * `training.nonfinite`, and its last checkpoint holds the state before. The search goes from cause
 * to effect: a parameter that is itself not finite, else the gradient nearest to the loss (backward
 * runs from the head down, so what stands above it is still clean), else the first position whose
 * loss is not finite. A loss far above its recent mean is only reported.
 */
import { OperationalError } from "../base/errors.ts";
import type { Batch, TrainableModel } from "../model/model-types.ts";
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

/**
 * The error for a step with a loss or a gradient that is not finite; `batch` if it was the loss.
 */
export function nonFiniteError(
  model: Pick<TrainableModel, "parameters" | "evaluate">,
  step: number,
  values: { readonly loss: number; readonly gradNorm: number | undefined },
  batch?: Batch,
): OperationalError {
  const { list } = model.parameters;
  const culprit = firstNonFinite(list, "value") ?? firstNonFinite([...list].reverse(), "gradient");
  const subject =
    batch === undefined
      ? `the gradient norm (${values.gradNorm})`
      : `the loss (${values.loss}, ${firstPosition(model, batch)})`;
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

function firstNonFinite(
  parameters: readonly Parameter[],
  part: "value" | "gradient",
): Culprit | undefined {
  for (const parameter of parameters) {
    const elements = view(parameter[part]);
    let count = 0;
    for (let index = 0; index < elements.length; index++) {
      if (!Number.isFinite(elements[index]!)) count++;
    }
    if (count > 0) {
      const finding = `${count} of ${elements.length} ${part}s are not finite`;
      return { tensor: parameter.name, layer: layerOf(parameter.name), finding };
    }
  }
  return undefined;
}

/** The tensor with the longest gradient: where to look first when the loss has jumped. */
export function longestGradient(model: Pick<TrainableModel, "parameters">): Culprit {
  let [longest, tensor] = [-1, ""];
  for (const { name, gradient } of model.parameters.list) {
    let sum = 0;
    for (const value of view(gradient)) sum += value * value;
    if (sum > longest) [longest, tensor] = [sum, name];
  }
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
