/** @file The ranks that share the experts of a decoder's model, as the decoder sees them. */
import type { EngineMetric } from "../engine/api.ts";
import type { ExpertLoad } from "../expert-load.ts";
import type { MicroBatchChoice } from "./micro-batch-policy.ts";

/** Ranks that share the experts of the model: they take part in every pass. */
export interface Followers {
  /** Whether a pass goes as two micro-batches. */
  readonly choice: MicroBatchChoice;
  /**
   * Right before a pass begins, when there is memory for what it reads: through the layers, at once
   * or as two micro-batches, or through the first MTP module. Experts may move meanwhile, as the
   * load so far suggests.
   */
  announce(pass: "layers" | "microBatches" | "draft", load: ExpertLoad): void;
  /** What is counted of them. */
  describe(load: ExpertLoad): readonly EngineMetric[];
}
