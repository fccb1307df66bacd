/** @file One of the ranks of an engine whose routed experts are divided: rank 0 is the engine. */
import { createHash } from "node:crypto";
import { defined, OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { openCheckpointTensors } from "../../checkpoint/checkpoint-tensors.ts";
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
import type { Communicator } from "../../parallel/communicator/communicator.ts";
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

/** Its name in a checkpoint. */
const FINAL_NORM = "model.norm.weight";

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
  let failed: Promise<void> = Promise.resolve();
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
      const opened = await openEngineHere(path, environmentOf(context), settings);
      failed = opened.ended;
      return opened;
    } catch (error) {
      problem = error;
      throw error;
    }
  });
  // The server has been told; the other ranks learn of it when this one fails.
  if (engine === null) throw problem;
  await Promise.all([closed, failed]);
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
  refuseUnlike(world, device, input as ExpertRankInput);
  const share = new ExpertShare(world, config, shareOptions((input as ExpertRankInput).experts));
  return { share, ticking: tickingDevice(device, () => world.tick()) };
}

/** Collective: refuse ranks that were not given the same model and settings. */
function refuseUnlike(
  world: Communicator,
  device: Device,
  { path, weights, experts }: ExpertRankInput,
): void {
  const { numRanks } = experts;
  if (world.size !== numRanks) {
    const message = `${numRanks} expert ranks were asked for and ${world.size} are there`;
    throw new OperationalError("parallel.experts", message);
  }
  using reader = openCheckpointTensors(path);
  // Of all weights the one that is read fastest; it moves with every step of training.
  const norm = reader.tensors.has(FINAL_NORM) ? reader.read(FINAL_NORM) : new Uint8Array();
  const given = JSON.stringify([readModelConfig(path), weights ?? null, experts]);
  const own = createHash("sha256").update(given).update(norm).digest("hex");
  const all = gatherHashes(world, device, own);
  if (all.every((hash) => hash === own)) return;
  throw new OperationalError(
    "serving.model",
    "the ranks have different models, flags or numbers of ranks on their hosts; give all the " +
      "same checkpoint and command, and every host as many ranks",
  );
}

/** Collective, however long others take to read their weights: one hash of those of all ranks. */
function hashOfAll({ ranks }: ExpertShare, device: Device, own: string): string {
  const all = gatherHashes(ranks, device, own);
  return createHash("sha256").update(all.join("")).digest("hex");
}

function gatherHashes(ranks: Communicator, device: Device, own: string): string[] {
  const arena = new Arena(device.memory, "hashes");
  const mine = arena.allocate("u8", [1, own.length]);
  const all = arena.allocate("u8", [ranks.size, own.length]);
  view(mine).set(new TextEncoder().encode(own));
  ranks.allGather(mine, all).wait("processes");
  const text = new TextDecoder().decode(view(all).slice());
  return Array.from({ length: ranks.size }, (_, rank) =>
    text.slice(rank * own.length, (rank + 1) * own.length),
  );
}

/** With this rank's share of the threads; the engine has what is left over. */
function environmentOf({ input, rank }: RankContext): Environment {
  const { env, ranksPerProcess } = input as ExpertRankInput;
  const numThreads = numThreadsIn(env);
  const each = Math.max(1, floorDiv(numThreads, ranksPerProcess));
  return withThreads(env, rank === LEADER ? numThreads - each * (ranksPerProcess - 1) : each);
}
