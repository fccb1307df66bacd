/**
 * @file Model FLOPs of a training token, for MFU: what the mathematics needs, not what an
 * implementation spends.
 *
 *     3 · (2 · active matrix parameters + attention scores and values)
 *     forward once, backward as much again twice
 *
 * Counted: every matrix product a token takes part in, the head included. Not counted: the
 * embedding (a look-up), norms, activations, recomputation. Attention over a sequence of T
 * positions touches T/2 keys on average (`causal`; the half key of the diagonal is left out, as
 * published counts do), or T when every pair is counted (`full`).
 *
 * Check (facts of DeepSeek-V3 at T = 4096): 250.4 GFLOP causal, 281.2 full, 260.6 causal with its
 * MTP module.
 */
import { isMoeLayer, type ModelConfig } from "../model/config.ts";

export interface FlopsOptions {
  readonly attention: "causal" | "full";
  /** Count the MTP modules, which training runs and serving may not. */
  readonly withMtp: boolean;
}

/** Floating-point operations of one token's share of forward and backward. */
export function flopsPerToken(
  config: ModelConfig,
  seqLength: number,
  options: FlopsOptions,
): number {
  const keys = options.attention === "causal" ? seqLength / 2 : seqLength;
  const { hiddenDim, numLayers, vocabSize } = config;
  const head = hiddenDim * vocabSize;
  let matrixParameters = head;
  let numBlocks = numLayers;
  for (let layer = 0; layer < numLayers; layer++)
    matrixParameters += blockParameters(config, layer);
  if (options.withMtp) {
    numBlocks += config.numMtpModules;
    for (let module = 0; module < config.numMtpModules; module++) {
      const block = blockParameters(config, numLayers + module);
      matrixParameters += block + 2 * hiddenDim * hiddenDim + head;
    }
  }
  const perKey = config.numHeads * (queryHeadDim(config) + config.vHeadDim);
  return 3 * (2 * matrixParameters + 2 * numBlocks * keys * perKey);
}

function queryHeadDim(config: ModelConfig): number {
  return config.qkNopeHeadDim + config.qkRopeHeadDim;
}

/** Parameters of the matrices that one token meets in a block. */
function blockParameters(config: ModelConfig, layer: number): number {
  const { hiddenDim: d, numHeads, qLoraRank, kvLoraRank } = config;
  const queryDim = numHeads * queryHeadDim(config);
  const query = qLoraRank === null ? d * queryDim : qLoraRank * (d + queryDim);
  const keyValue =
    d * (kvLoraRank + config.qkRopeHeadDim) +
    kvLoraRank * numHeads * (config.qkNopeHeadDim + config.vHeadDim);
  const attention = query + keyValue + numHeads * config.vHeadDim * d;
  if (!isMoeLayer(config, layer)) return attention + 3 * d * config.intermediateDim;
  const experts = config.numExpertsPerToken + config.numSharedExperts;
  const gate = d * config.numRoutedExperts;
  return attention + gate + 3 * d * config.moeIntermediateDim * experts;
}
