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
import type { Communicator, Operation } from "../../parallel/communicator/communicator.ts";
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
  maxPositionEmbeddings: 256,
};
const SEED = 17;

/** Long and short together, then tokens one by one, which one process replays. */
const PASSES = [[9, 1, 4], [1, 1, 1], [1, 1, 1], [1, 1, 1], [2, 7, 1], [1]];

export interface DecodingCase {
  readonly precision: Precision;
  readonly numRedundant: number;
  readonly ranksPerHost: number;
  /** The first experts are liked best, and the last of all get no tokens. */
  readonly isSkewed: boolean;
  readonly rebalanceTokens: number;
  /** Tokens of a pass from which on ranks take it as two micro-batches. */
  readonly microBatchesMin: number;
  /** New tokens of each sequence in each pass; `PASSES` if left out. */
  readonly passes?: readonly (readonly number[])[];
  /** Whether the leader notes what it launches and waits for. */
  readonly isTraced?: boolean;
  /** Exchanges of messages after which the other ranks fail. */
  readonly failsAfter?: number;
}

/** All logits and drafted logits, in the order in which they came; what was counted. */
export interface Decoded {
  readonly logits: readonly Float32Array[];
  readonly maxOverMean: readonly number[];
  /** Of the ranks; none where there are none. */
  readonly metrics: readonly EngineMetric[];
  /** Of the leader, if traced. */
  readonly events: readonly string[];
}

/** Each case on these ranks; null from those that have no tokens. */
export async function runRank(context: RankContext): Promise<readonly (Decoded | null)[]> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  return (context.input as readonly DecodingCase[]).map((one) => {
    const { ranksPerHost, numRedundant, precision } = one;
    const options = { ranksPerHost, numRedundant, byChoice: true, source: LEADER };
    const events: string[] = [];
    const { isTraced = false, failsAfter } = one;
    if (context.rank === LEADER) {
      const [ranks, runsOn] = isTraced
        ? [tracedRanks(world, events), tracedDevice(device, events)]
        : [world, device];
      return { ...decode(runsOn, one, new ExpertShare(ranks, CONFIG, options)), events };
    }
    const ranks = failsAfter === undefined ? world : failingRanks(world, failsAfter);
    const share = new ExpertShare(ranks, CONFIG, options);
    const experts = new ServedExperts(device, CONFIG, share, { precision });
    experts.parameters.initialize(SEED, CONFIG.initializerRange);
    followExperts(share, experts, device.memory);
    return null;
  });
}

/** The same passes, alone or as the leader. */
export function decode(device: Device, one: DecodingCase, share?: ExpertShare): Decoded {
  const { precision, isSkewed, rebalanceTokens, microBatchesMin, passes = PASSES } = one;
  const options = { precision, seed: SEED, gradients: false } as const;
  const model = new Model(device, CONFIG, { ...options, experts: share });
  moveBiases(model, isSkewed);
  const { memory } = device;
  const choice = {
    takesTwo: (numTokens: number) => numTokens >= microBatchesMin,
    note: () => {},
  };
  const leads = share && new ExpertLeader(share, model, { memory, rebalanceTokens, choice });
  const decoder = new Decoder(device, model, 1024, leads);
  const random = new Random(SEED, "tokens");
  const caches = [0, 1, 2].map(() => decoder.openCache());
  const logits: Float32Array[] = [];
  for (const lengths of passes) {
    const feeds = lengths.flatMap((length, index) => {
      const tokens = Int32Array.from({ length }, () => random.below(CONFIG.vocabSize));
      return length === 0 ? [] : [{ cache: caches[index]!, tokens, logits: "all" as const }];
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
  return { logits, maxOverMean: decoder.expertLoad.maxOverMean(), metrics, events: [] };
}

/** The device, noting attention and experts. */
function tracedDevice(device: Device, events: string[]): Device {
  return withOthers(device, {
    launch: (key: string, slots: readonly number[], numTasks: number): void => {
      if (key.startsWith("latentAttention/")) events.push("attention");
      if (key.startsWith("groupedMatmul/")) events.push("experts");
      device.launch(key, slots, numTasks);
    },
  });
}

/** The ranks, noting when the messages of an exchange go and when they are there. */
function tracedRanks(ranks: Communicator, events: string[]): Communicator {
  let numIssued = 0;
  return withOthers(ranks, {
    group: (issue: () => void): Operation => {
      const name = `${ranks.name} ${numIssued++}`;
      const operation = ranks.group(issue);
      events.push(`${name} goes`);
      const wait: Operation["wait"] = (judged) => {
        operation.wait(judged);
        events.push(`${name} is there`);
      };
      return { isDone: () => operation.isDone(), wait };
    },
    split: (colour: number | null, key: number, name: string): Communicator | null => {
      const part = ranks.split(colour, key, name);
      return part === null ? null : tracedRanks(part, events);
    },
  });
}

/** The ranks, of which this one fails once so many messages were exchanged on a communicator. */
function failingRanks(ranks: Communicator, count: number): Communicator {
  let left = count;
  return withOthers(ranks, {
    group: (issue: () => void): Operation => {
      if (left-- === 0) throw new Error("struck by lightning");
      return ranks.group(issue);
    },
    split: (colour: number | null, key: number, name: string): Communicator | null => {
      const part = ranks.split(colour, key, name);
      return part === null ? null : failingRanks(part, count);
    },
  });
}

/** An object with some members in place of its own. */
function withOthers<T extends object>(object: T, others: Partial<T>): T {
  return new Proxy(object, {
    get: (target, name) => {
      const key = name as keyof T;
      const value = others[key] ?? target[key];
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
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
