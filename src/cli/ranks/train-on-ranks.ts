/**
 * @file A training run over ranks: threads of this process, or this process as one of those that an
 * MPI launcher has started.
 *
 * Threads tell the observer over a channel.
 */
import { randomUUID } from "node:crypto";
import { availableParallelism } from "node:os";
import { BroadcastChannel } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { siblingModule } from "../../base/modules.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { runUnderMpi } from "../../parallel/communicator/mpi/run-under-mpi.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import { numRanksOf } from "../../parallel/mesh.ts";
import type { TrainingObserver } from "../../training/run/observer.ts";
import type { TrainRunSummary } from "../../training/run/train-run.ts";
import type { Context } from "../verb.ts";
import { ranksOfThisHost } from "./launcher.ts";
import {
  type RankDevices,
  type RankedEnd,
  type RankedRun,
  runOneRank,
  summaryOf,
} from "./rank-run.ts";
import type { LeaderMessage, ThreadRankInput } from "./thread-rank.ts";

type Environment = Context["env"];

export interface OnThreads extends Omit<RankedRun, "signal"> {
  readonly signal: AbortSignal;
  readonly env: Environment;
}

/** Ranks on threads of this process, which divide the machine's threads among them. */
export async function trainOnThreads({
  env,
  observer,
  signal,
  ...run
}: OnThreads): Promise<TrainRunSummary> {
  const numRanks = numRanksOf(run.layout.mesh);
  const options = cpuOptionsFromEnvironment(env);
  const total = options.numThreads ?? availableParallelism();
  const perRank = Math.max(1, floorDiv(total, numRanks));
  const devices = {
    rank: { ...options, numThreads: perRank },
    whole: { ...options, numThreads: total },
  };
  const interruption = new SharedArrayBuffer(4);
  const interrupt = (): void => {
    Atomics.store(new Int32Array(interruption), 0, 1);
  };
  if (signal.aborted) interrupt();
  signal.addEventListener("abort", interrupt);
  const channel = `hadal ranks ${randomUUID()}`;
  const listener = listen(channel, observer ?? {});
  try {
    const input: ThreadRankInput = { run, devices, channel, interruption };
    const program = siblingModule("./thread-rank", import.meta.url);
    const ends = (await runOnThreads({ numRanks, program, input })) as RankedEnd[];
    await listener.ended;
    const summary = summaryOf(ends[0]!);
    if (summary === null) throw new OperationalError("parallel.rankFailed", "rank 0 did not lead");
    return summary;
  } finally {
    signal.removeEventListener("abort", interrupt);
    listener.close();
  }
}

/** Passes on what the leader says, until it says "end". */
function listen(name: string, observer: TrainingObserver) {
  const channel = new BroadcastChannel(name);
  const { promise: ended, resolve } = Promise.withResolvers<void>();
  channel.onmessage = (message: unknown): void => {
    const { data } = message as { readonly data: LeaderMessage };
    if (data.event === "end") {
      resolve();
      return;
    }
    const tell = observer[data.event] as ((...values: readonly unknown[]) => void) | undefined;
    tell?.(...data.values);
  };
  return { ended, close: () => channel.close() };
}

/** This process as a rank under MPI; null unless it leads. */
export async function trainUnderMpi(
  run: RankedRun,
  env: Environment,
): Promise<TrainRunSummary | null> {
  const options = cpuOptionsFromEnvironment(env);
  const local = ranksOfThisHost(env) ?? 1;
  const perRank = options.numThreads ?? Math.max(1, floorDiv(availableParallelism(), local));
  const devices: RankDevices = {
    rank: { ...options, numThreads: perRank },
    whole: { ...options, numThreads: perRank * local },
  };
  const end = await runUnderMpi((context) => runOneRank(context, devices, run));
  return summaryOf(end as RankedEnd);
}
