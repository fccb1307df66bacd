/**
 * @file `hadal serve` as processes that an MPI launcher has started: in two roles, of which the
 * first serves and decodes and the second reads prompts, or with experts on all of them
 * (serve-experts.ts).
 */
import { OperationalError } from "../../base/errors.ts";
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
import { launchedRanks } from "./launcher.ts";
import { serveExperts } from "./serve-experts.ts";
import { openedOnce, theOneModel, withThreads } from "./served-once.ts";

const SPLIT_RANKS = 2;

type OnReady = Parameters<typeof serveModels>[2];

/** Until a signal comes, as `serveModels`; `onReady` is called on the first rank. */
export async function serveOverRanks(
  options: ServeOptions,
  context: Context,
  onReady: OnReady,
): Promise<void> {
  refuseRanks(options, context.env);
  if (options.role === "split") return await serveSplit(options, context, onReady);
  await serveExperts(options, context, onReady);
}

async function serveSplit(
  options: ServeOptions,
  context: Context,
  onReady: OnReady,
): Promise<void> {
  const model = theOneModel(options);
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
    const openModel = openedOnce(async (path, prefixFolder) => {
      const origin = { path: resolveCheckpoint(path), env, prefixFolder, weights };
      const opened = await openDecodeRank(origin, pair);
      ended = opened.ended;
      return opened.engine;
    });
    await serveModels({ ...options, openModel }, context, onReady);
    await ended;
  });
}

function refuseRanks({ role, expertRanks }: ServeOptions, env: Context["env"]): void {
  const numRanks = launchedRanks(env);
  const numAsked = role === "split" ? SPLIT_RANKS : expertRanks;
  if (numRanks === numAsked && numAsked > 1) return;
  const given =
    role === "split" || expertRanks === 1 ? `--role ${role}` : `--expert-ranks ${expertRanks}`;
  throw new OperationalError(
    "usage.ranks",
    `serving over ${numRanks} ranks with ${given}: two with --role split can, and N with ` +
      "--expert-ranks N",
  );
}
