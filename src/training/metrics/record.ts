/**
 * @file What is noted of a step: one line of metrics.jsonl, and the same as TensorBoard scalars.
 */
import type { Scalars } from "./tensorboard.ts";

/** One line of metrics.jsonl. Losses are in nats a token, times in seconds. */
export interface StepRecord {
  /** 0 for the first. */
  readonly step: number;
  /** Consumed up to and with this step. */
  readonly tokens: number;
  readonly loss: number;
  readonly mtpLosses: readonly number[];
  readonly balanceLoss: number;
  readonly learningRate: number;
  /** Before clipping. */
  readonly gradNorm: number;
  /** (Busiest expert − mean) ÷ mean of this step's load, per MoE layer; empty for a dense model. */
  readonly maxVio: readonly number[];
  /** The same of the mean load of recent steps: without the noise of single batches. */
  readonly recentMaxVio: readonly number[];
  /** Tokens that chose each expert, per MoE layer. */
  readonly expertLoad: readonly (readonly number[])[];
  /**
   * Sent by all ranks to others' experts and back, by kind of link; only where ranks share them.
   */
  readonly exchangedBytes?: { readonly acrossHosts: number; readonly withinHost: number };
  /**
   * Only where experts were placed anew after this step: copies that were made, and what the
   * busiest rank of the worst layer bears over the mean, before and after.
   */
  readonly rebalance?: {
    readonly numMoves: number;
    readonly before: number;
    readonly after: number;
  };
  readonly tokensPerSecond: number;
  /** Model FLOPs over the measured peak; null where no peak was measured. */
  readonly mfu: number | null;
  /** Since the run began, without the time between sessions. */
  readonly seconds: number;
  /** After this step, on the part of the held-out text that validation takes. */
  readonly validationBitsPerByte?: number;
}

/** The scalars of a record under grouped names. */
export function toScalars(record: StepRecord, moeLayerIndices: readonly number[]): Scalars {
  const scalars: Record<string, number> = {
    "loss/train": record.loss,
    "loss/balance": record.balanceLoss,
    "optimizer/learningRate": record.learningRate,
    "optimizer/gradNorm": record.gradNorm,
    "speed/tokensPerSecond": record.tokensPerSecond,
    tokens: record.tokens,
  };
  for (const [module, loss] of record.mtpLosses.entries()) scalars[`loss/mtp${module}`] = loss;
  for (const [order, layerIndex] of moeLayerIndices.entries()) {
    scalars[`maxVio/layer${layerIndex}`] = record.maxVio[order] ?? 0;
    scalars[`recentMaxVio/layer${layerIndex}`] = record.recentMaxVio[order] ?? 0;
  }
  if (record.exchangedBytes !== undefined) {
    scalars["exchange/bytesAcrossHosts"] = record.exchangedBytes.acrossHosts;
    scalars["exchange/bytesWithinHost"] = record.exchangedBytes.withinHost;
  }
  if (record.rebalance !== undefined) {
    scalars["rebalance/moves"] = record.rebalance.numMoves;
    scalars["rebalance/busiestBefore"] = record.rebalance.before;
    scalars["rebalance/busiestAfter"] = record.rebalance.after;
  }
  if (record.mfu !== null) scalars["speed/mfu"] = record.mfu;
  if (record.validationBitsPerByte !== undefined) {
    scalars["validation/bitsPerByte"] = record.validationBitsPerByte;
  }
  return scalars;
}
