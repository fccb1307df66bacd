/**
 * @file Two ranks that serve a prompt's chunk together, over a link as slow as they compute: how
 * much of the exchange of experts' tokens is waited for with one micro-batch and with two.
 *
 *     exposed  of a way through the layers: its time on the slow link − on the machine's own,
 *              ÷ the time that the link's operations take together
 *
 * The link's speed is chosen so that its operations in one pass together take as long as the pass
 * with one micro-batch does on the machine's own.
 */
import { Random } from "../src/base/random.ts";
import {
  DelayedCommunicator,
  type SlowLink,
} from "../src/cli/bench/parallel/delayed-communicator.ts";
import type { Device } from "../src/device/device.ts";
import { tickingDevice } from "../src/device/ticking-device.ts";
import { Decoder } from "../src/inference/decoder.ts";
import { ExpertLeader } from "../src/inference/expert-ranks/expert-leader.ts";
import { LEADER } from "../src/inference/expert-ranks/expert-orders.ts";
import { followExperts } from "../src/inference/expert-ranks/follow-experts.ts";
import { openCpuDevice } from "../src/kernels/cpu.ts";
import { ExpertShare } from "../src/model/expert-share.ts";
import { Model } from "../src/model/model.ts";
import { type Preset, presetConfig } from "../src/model/presets.ts";
import { ServedExperts } from "../src/model/served-experts.ts";
import type { Communicator } from "../src/parallel/communicator/communicator.ts";
import type { RankContext } from "../src/parallel/communicator/rank-program.ts";
import { Arena } from "../src/tensor/arena.ts";
import { view } from "../src/tensor/view.ts";

const SEED = 3;
const ROUNDS = 9;
const PASSES = 4;

export interface PrefillCase {
  readonly preset: Preset;
  readonly chunkTokens: number;
  /** Positions before the chunk. */
  readonly prefixTokens: number;
}

/** Milliseconds of a pass in each round, on the rank that has the tokens. */
export interface PrefillTimes {
  readonly bytesPerPass: number;
  /** What the slow link's operations of a pass take together. */
  readonly linkMs: number;
  readonly whole: readonly number[];
  readonly two: readonly number[];
  readonly slowWhole: readonly number[];
  readonly slowTwo: readonly number[];
}

/** Null from the rank that has no tokens. */
export async function runRank(context: RankContext): Promise<PrefillTimes | null> {
  const asked = context.input as PrefillCase;
  await using opened = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(opened.memory);
  const device = tickingDevice(opened, () => world.tick());
  const link: SlowLink = { msPerByte: 0, numBytes: 0 };
  const config = presetConfig(asked.preset, 4096);
  const options = { ranksPerHost: world.size, byChoice: true, source: LEADER };
  const share = new ExpertShare(new DelayedCommunicator(world, link), config, options);
  if (context.rank !== LEADER) {
    const experts = new ServedExperts(device, config, share, { precision: "bf16" });
    experts.parameters.initialize(SEED, config.initializerRange);
    // One phase to warm up, one to measure the link, then a fast and a slow one each round.
    for (let phase = 0; phase < 2 + 2 * ROUNDS; phase++) {
      if (phase === 2) link.msPerByte = agree(device, world, 0);
      const slow = link.msPerByte;
      link.msPerByte = phase > 2 && phase % 2 === 1 ? slow : 0;
      followExperts(share, experts, device.memory);
      link.msPerByte = slow;
    }
    return null;
  }
  return lead({ device, world, link, share }, asked);
}

function lead(
  ranks: {
    readonly device: Device;
    readonly world: Communicator;
    readonly link: SlowLink;
    readonly share: ExpertShare;
  },
  { preset, chunkTokens, prefixTokens }: PrefillCase,
): PrefillTimes {
  const { device, world, link, share } = ranks;
  const config = presetConfig(preset, 4096);
  const options = { precision: "bf16", seed: SEED, gradients: false, experts: share } as const;
  const model = new Model(device, config, options);
  const { memory } = device;
  const random = new Random(SEED, "prompt");
  const tokensOf = (length: number): Int32Array =>
    Int32Array.from({ length }, () => random.below(config.vocabSize));
  const [prefix, chunk] = [tokensOf(prefixTokens), tokensOf(chunkTokens)];
  const way = (isTwo: boolean) => {
    const choice = { takesTwo: () => isTwo, note: () => {} };
    const leader = new ExpertLeader(share, model, { memory, rebalanceTokens: 0, choice });
    const decoder = new Decoder(device, model, prefixTokens + chunkTokens, leader);
    const cache = decoder.openCache();
    const read = (tokens: Int32Array): void => {
      void decoder.forward([{ cache, tokens, logits: "none" }]);
    };
    const time = (): number => {
      const start = performance.now();
      for (let count = 0; count < PASSES; count++) {
        cache.truncate(prefixTokens);
        read(chunk);
      }
      return (performance.now() - start) / PASSES;
    };
    if (prefixTokens > 0) read(prefix);
    return { leader, time };
  };
  const [whole, two] = [way(false), way(true)];
  for (const { time } of [whole, two, whole, two]) time();
  whole.leader.end();
  link.numBytes = 0;
  const computing = Math.min(...Array.from({ length: 5 }, whole.time));
  const bytesPerPass = link.numBytes / (5 * PASSES);
  whole.leader.end();
  const msPerByte = agree(device, world, computing / bytesPerPass);
  const times = { whole: [], two: [], slowWhole: [], slowTwo: [] };
  const measured: Record<keyof typeof times, number[]> = times;
  for (let round = 0; round < ROUNDS; round++) {
    link.msPerByte = 0;
    measured.whole.push(whole.time());
    measured.two.push(two.time());
    whole.leader.end();
    link.msPerByte = msPerByte;
    measured.slowWhole.push(whole.time());
    measured.slowTwo.push(two.time());
    whole.leader.end();
  }
  return { ...measured, bytesPerPass, linkMs: computing };
}

/** Collective: the largest of all ranks' numbers. */
function agree(device: Device, world: Communicator, value: number): number {
  const tensor = new Arena(device.memory, "a number").allocate("f64", [1]);
  view(tensor)[0] = value;
  world.allReduce(tensor, tensor, "max").wait();
  return view(tensor)[0]!;
}
