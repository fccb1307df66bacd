/**
 * @file `hadal serve --role split` as two processes that an MPI launcher has started: the first
 * serves and decodes, the second reads prompts.
 */
import { availableParallelism } from "node:os";
import { OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import { runUnderMpi } from "../../parallel/communicator/mpi/run-under-mpi.ts";
import {
  openDecodeRank,
  type RankPair,
  servePrefillRank,
} from "../../serving/models/rank-split.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";
import { modelOf, type ServeOptions, serveModels } from "../serve-model.ts";
import type { Context } from "../verb.ts";
import { launchedRanks, ranksOfThisHost } from "./launcher.ts";

const NUM_RANKS = 2;

/** Until a signal comes, as `serveModels`; `onReady` is called on the first rank. */
export async function serveOverRanks(
  options: ServeOptions,
  context: Context,
  onReady: Parameters<typeof serveModels>[2],
): Promise<void> {
  const model = refuseOthers(options, context.env);
  const env = withThreads(context.env);
  const { weights } = options;
  await runUnderMpi(async ({ rank, join }) => {
    const memory = CpuMemory.create(null);
    const pair: RankPair = { communicator: await join(memory), memory };
    if (rank > 0) {
      // A signal reaches both; the first rank drains its requests and then says so.
      context.interruption.orderly();
      const path = resolveCheckpoint(modelOf(model).path);
      await servePrefillRank({ path, env, prefixFolder: null, weights }, pair);
      return;
    }
    let ended: Promise<void> | null = null;
    await serveModels(
      {
        ...options,
        openModel: async (path, prefixFolder) => {
          if (ended !== null) {
            const message = "an engine over ranks is opened once; start the ranks again";
            throw new OperationalError("serving.model", message);
          }
          const origin = { path: resolveCheckpoint(path), env, prefixFolder, weights };
          const opened = await openDecodeRank(origin, pair);
          ended = opened.ended;
          return opened.engine;
        },
      },
      context,
      onReady,
    );
    await ended;
  });
}

/** The one model. */
function refuseOthers({ role, models }: ServeOptions, env: Context["env"]): string {
  const numRanks = launchedRanks(env);
  if (role !== "split" || numRanks !== NUM_RANKS) {
    throw new OperationalError(
      "usage.ranks",
      `serving over ${numRanks} ranks with --role ${role}: two with --role split can`,
    );
  }
  const [model, ...others] = models;
  if (model !== undefined && others.length === 0) return model;
  throw new OperationalError("usage.ranks", `two ranks serve one --model, not ${models.length}`);
}

/** Ranks of one machine share its threads. */
function withThreads(env: Context["env"]): Context["env"] {
  const { numThreads } = cpuOptionsFromEnvironment(env);
  const share = floorDiv(availableParallelism(), ranksOfThisHost(env) ?? 1);
  return { ...env, HADAL_THREADS: String(numThreads ?? Math.max(1, share)) };
}
