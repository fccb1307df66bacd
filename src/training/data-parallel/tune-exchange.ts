/** @file The exchange of experts' rows tuned for the micro-batches of a run. */
import { rowBytes } from "../../model/scaled-shape.ts";
import type { ExpertExchange } from "../../parallel/expert/exchange/expert-exchange.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { TrainingSettings } from "../settings.ts";

/** Collective: messages as long as suits a micro-batch. */
export function tuneExchange(
  exchange: ExpertExchange,
  { batch, data, recipe, model }: TrainingSettings,
  scratch: Arena,
): void {
  const size = {
    numTokens: batch.microBatch * data.sequenceLength,
    rowBytes: rowBytes(recipe.tensors.dispatch, model.hiddenDim),
  };
  exchange.tune(size, scratch, () => performance.now());
}
