/**
 * @file Ranks that decode random sequences, ragged and one by one, with the experts of the model
 * divided over them; and one process that does the same.
 */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import { ExpertShare } from "../../model/expert-share.ts";
import { Model } from "../../model/model.ts";
import type { GateBias, Precision } from "../../model/model-types.ts";
import { ServedExperts } from "../../model/served-experts.ts";
import { TINY } from "../../model/test-support.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { view } from "../../tensor/view.ts";
import { Decoder } from "../decoder.ts";
import type { EngineMetric } from "../engine/api.ts";
import { ExpertLeader } from "./expert-leader.ts";
import { LEADER } from "./expert-orders.ts";
import { followExperts } from "./follow-experts.ts";

/** A dense layer, two MoE layers and an MTP module; experts in groups. */
const CONFIG: ModelConfig = {
  ...TINY,
  vocabSize: 61,
  hiddenDim: 24,
  numLayers: 3,
  numExpertsPerToken: 3,
  numExpertGroups: 4,
  numChosenGroups: 2,
  numMtpModules: 1,
};
const SEED = 17;

export interface DecodingCase {
  readonly precision: Precision;
  readonly numRedundant: number;
  readonly ranksPerHost: number;
  /** The first experts are liked best, and the last of all get no tokens. */
  readonly isSkewed: boolean;
  readonly rebalanceTokens: number;
}

/** All logits and drafted logits, in the order in which they came; what was counted. */
export interface Decoded {
  readonly logits: readonly Float32Array[];
  readonly maxOverMean: readonly number[];
  /** Of the ranks; none where there are none. */
  readonly metrics: readonly EngineMetric[];
}

/** Each case on these ranks; null from those that have no tokens. */
export async function runRank(context: RankContext): Promise<readonly (Decoded | null)[]> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  return (context.input as readonly DecodingCase[]).map((one) => {
    const { ranksPerHost, numRedundant, precision } = one;
    const options = { ranksPerHost, numRedundant, byChoice: true, source: LEADER };
    const share = new ExpertShare(world, CONFIG, options);
    if (context.rank === LEADER) return decode(device, one, share);
    const experts = new ServedExperts(device, CONFIG, share, { precision });
    experts.parameters.initialize(SEED, CONFIG.initializerRange);
    followExperts(share, experts, device.memory);
    return null;
  });
}

/** The same passes, alone or as the leader. */
export function decode(
  device: Device,
  { precision, isSkewed, rebalanceTokens }: DecodingCase,
  share?: ExpertShare,
): Decoded {
  const options = { precision, seed: SEED, gradients: false } as const;
  const model = new Model(device, CONFIG, { ...options, experts: share });
  moveBiases(model, isSkewed);
  const leads = share && new ExpertLeader(share, model, { memory: device.memory, rebalanceTokens });
  const decoder = new Decoder(device, model, 512, leads);
  const random = new Random(SEED, "tokens");
  const caches = [0, 1, 2].map(() => decoder.openCache());
  const logits: Float32Array[] = [];
  // Long and short together, then tokens one by one, which one process replays.
  for (const lengths of [[9, 1, 4], [1, 1, 1], [1, 1, 1], [1, 1, 1], [2, 7, 1], [1]]) {
    const feeds = lengths.map((length, index) => {
      const tokens = Int32Array.from({ length }, () => random.below(CONFIG.vocabSize));
      return { cache: caches[index]!, tokens, logits: "all" as const };
    });
    const positions = feeds.map(({ cache }) => cache.length);
    const { logits: ofFeeds, hidden } = decoder.forwardKeeping(feeds);
    logits.push(...ofFeeds.map((each) => each.slice()));
    let firstRow = 0;
    const drafts = feeds.map(({ cache, tokens }, index) => {
      const feed = { cache, firstRow, position: positions[index]!, nextTokens: tokens };
      firstRow += tokens.length;
      return { ...feed, logits: true };
    });
    logits.push(...decoder.draft(hidden, drafts).logits.map((each) => each.slice()));
  }
  const metrics = decoder.describeFollowers();
  leads?.end();
  return { logits, maxOverMean: decoder.expertLoad.maxOverMean(), metrics };
}

function moveBiases({ gateBiases }: { readonly gateBiases: readonly GateBias[] }, skews: boolean) {
  const random = new Random(SEED, "biases");
  for (const { bias } of gateBiases) {
    const values = view(bias);
    for (const expert of values.keys()) values[expert] = 0.1 * random.normal();
    if (skews) values.set([3, 2, 1]);
    if (skews) values.fill(-9, 6);
  }
}
