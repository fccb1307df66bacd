/** @file One of the ranks of an engine whose routed experts are divided: rank 0 is the engine. */
import { createHash } from "node:crypto";
import { defined } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import type { Device } from "../../device/device.ts";
import { tickingDevice } from "../../device/ticking-device.ts";
import { hostEngine, signsOfLife } from "../../inference/engine/thread/engine-host.ts";
import { ExpertLeader } from "../../inference/expert-ranks/expert-leader.ts";
import { LEADER } from "../../inference/expert-ranks/expert-orders.ts";
import { followExperts } from "../../inference/expert-ranks/follow-experts.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import { ExpertShare } from "../../model/expert-share.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import {
  inferenceOptions,
  loadServedExperts,
  readModelConfig,
} from "../../training/run/checkpoint.ts";
import { type Environment, numThreadsIn, withThreads } from "./engine-origin.ts";
import { type ExpertRankInput, shareOptions } from "./expert-engine.ts";
import { hashOf } from "./model-hash.ts";
import { type ExpertLead, openEngineHere } from "./open-engine.ts";

/** Until the engine is closed. */
export async function runRank(context: RankContext): Promise<void> {
  if (context.rank === LEADER) await lead(context);
  else await serve(context);
}

async function lead(context: RankContext): Promise<void> {
  const { path, prefixFolder, weights, experts } = context.input as ExpertRankInput;
  const { rebalanceTokens } = experts;
  const port = defined(context.port, "a line to the server");
  const closed = new Promise((resolve) => port.once("close", resolve));
  let problem: unknown;
  const leadExperts = async (device: Device, config: ModelConfig): Promise<ExpertLead> => {
    const { share, ticking } = await joinRanks(context, device, config);
    const { memory } = device;
    return {
      ...{ share, device: ticking },
      hashOfAll: (own) => hashOfAll(share, device, own),
      begin: (model) => new ExpertLeader(share, model, { memory, rebalanceTokens }),
    };
  };
  const engine = await hostEngine(port, async () => {
    try {
      const settings = { prefixFolder, weights, leadExperts, onLaunch: signsOfLife(port) };
      return await openEngineHere(path, environmentOf(context), settings);
    } catch (error) {
      problem = error;
      throw error;
    }
  });
  // The server has been told; the other ranks learn of it when this one fails.
  if (engine === null) throw problem;
  await closed;
}

async function serve(context: RankContext): Promise<void> {
  const { path, weights } = context.input as ExpertRankInput;
  await using device = await openCpuDevice(cpuOptionsFromEnvironment(environmentOf(context)));
  const { share, ticking } = await joinRanks(context, device, readModelConfig(path));
  const experts = loadServedExperts(ticking, path, share, inferenceOptions(path, weights));
  hashOfAll(share, device, hashOf(experts));
  followExperts(share, experts, device.memory);
}

/** Collective: the ranks, and a device that shows them that this one lives. */
async function joinRanks(
  { input, join }: RankContext,
  device: Device,
  config: ModelConfig,
): Promise<{ readonly share: ExpertShare; readonly ticking: Device }> {
  const world = await join(device.memory);
  const share = new ExpertShare(world, config, shareOptions((input as ExpertRankInput).experts));
  return { share, ticking: tickingDevice(device, () => world.tick()) };
}

/** Collective, however long others take to read their weights: one hash of those of all ranks. */
function hashOfAll({ ranks }: ExpertShare, device: Device, own: string): string {
  const arena = new Arena(device.memory, "hashes");
  const mine = arena.allocate("u8", [1, own.length]);
  const all = arena.allocate("u8", [ranks.size, own.length]);
  view(mine).set(new TextEncoder().encode(own));
  ranks.allGather(mine, all).wait("processes");
  return createHash("sha256").update(view(all)).digest("hex");
}

/** With this rank's share of the threads; the engine has what is left over. */
function environmentOf({ input, rank, size }: RankContext): Environment {
  const { env } = input as ExpertRankInput;
  const numThreads = numThreadsIn(env);
  const each = Math.max(1, floorDiv(numThreads, size));
  return withThreads(env, rank === LEADER ? numThreads - each * (size - 1) : each);
}
