/** @file The program of the ranks that `train-on-threads.ts` starts. */
import { BroadcastChannel } from "node:worker_threads";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import type { TrainingObserver } from "../../training/run/observer.ts";
import { type RankDevices, type RankedEnd, type RankedRun, runOneRank } from "./rank-run.ts";

/** What the observer of a run is told. */
const EVENTS: readonly (keyof TrainingObserver)[] = [
  "onPrepare",
  "onStart",
  "onPlan",
  "onStep",
  "onEvaluation",
  "onCheckpoint",
  "onWarning",
];

/** What the leader says to the thread that started it; "end" comes last. */
export type LeaderMessage =
  | { readonly event: keyof TrainingObserver; readonly values: readonly unknown[] }
  | { readonly event: "end" };

export interface ThreadRankInput {
  readonly run: Omit<RankedRun, "observer" | "signal">;
  readonly devices: RankDevices;
  /** Name of the channel to the starting thread. */
  readonly channel: string;
  /** Its one word becomes 1 when the run is to end early. */
  readonly interruption: SharedArrayBuffer;
}

export async function runRank(context: RankContext): Promise<RankedEnd> {
  const { run, devices, channel, interruption } = context.input as ThreadRankInput;
  const toStarter = new BroadcastChannel(channel);
  const post = (message: LeaderMessage): void => toStarter.postMessage(message);
  const flag = new Int32Array(interruption);
  const signal = {
    get aborted(): boolean {
      return Atomics.load(flag, 0) !== 0;
    },
  };
  const observer = Object.fromEntries(
    EVENTS.map((event) => [event, (...values: unknown[]) => post({ event, values })]),
  ) as TrainingObserver;
  try {
    return await runOneRank(context, devices, { ...run, observer, signal });
  } finally {
    if (context.rank === 0) post({ event: "end" });
    toStarter.close();
  }
}
