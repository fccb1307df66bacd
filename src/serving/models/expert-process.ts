/**
 * @file A process as one rank of an engine whose routed experts are divided over the ranks that an
 * MPI launcher has started: expert-engine.ts over processes, and over machines.
 *
 * Rank 0 is the engine and serves; the others hold their part of the experts. It is fail-stop, as
 * all that runs over ranks: if one is lost the others end.
 */
import { MessageChannel, Worker } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import { siblingModule } from "../../base/modules.ts";
import type { Engine } from "../../inference/engine/api.ts";
import { LEADER } from "../../inference/expert-ranks/expert-orders.ts";
import { readTokenizer } from "../../training/run/checkpoint.ts";
import type { EngineOrigin } from "./engine-origin.ts";
import {
  type ExpertRun,
  type ExpertSettings,
  openOverRanks,
  refuseUnfit,
} from "./expert-engine.ts";
import type { ExpertProcessReport, ExpertProcessStart } from "./expert-process-thread.ts";

/** A failed rank tells the others for a moment before MPI ends the process. */
const STOP_MS = 2000;

export interface ExpertProcess {
  /** null: this rank holds experts for the one that is the engine. */
  readonly engine: Engine | null;
  /** When the rank has ended: after the engine is closed. Throws why it failed. */
  readonly ended: Promise<void>;
}

/** Collective over the processes, which are given the same; `env` has this one's threads. */
export async function openExpertProcess(
  origin: Omit<EngineOrigin, "port">,
  experts: ExpertSettings,
): Promise<ExpertProcess> {
  refuseUnfit(origin, experts);
  const tokenizer = readTokenizer(origin.path);
  const { port1: line, port2: port } = new MessageChannel();
  const input = { ...origin, experts, ranksPerProcess: 1 };
  const worker = new Worker(siblingModule("./expert-process-thread", import.meta.url), {
    workerData: { input, port } satisfies ExpertProcessStart,
    transferList: [port],
  });
  const { rank, run } = await rankOf(worker);
  const ended = run.ended.then((failure) => {
    if (failure !== null) throw new OperationalError(failure.code, failure.message);
  });
  // Thrown where it is awaited.
  ended.catch(() => {});
  if (rank === LEADER) return { engine: await openOverRanks(line, tokenizer, run), ended };
  line.close();
  return { engine: null, ended };
}

/** Which rank a thread is, once it knows; throws if it fails before. */
async function rankOf(worker: Worker): Promise<{ readonly rank: number; readonly run: ExpertRun }> {
  const known = Promise.withResolvers<number>();
  const over = Promise.withResolvers<Awaited<ExpertRun["ended"]>>();
  worker.on("message", (report: ExpertProcessReport) => {
    if (report.kind === "rank") known.resolve(report.rank);
    else over.resolve(report.failure);
  });
  worker.once("error", ({ message }) => over.resolve({ code: "parallel.rankFailed", message }));
  worker.once("exit", () => over.resolve(null));
  const stop = (): void => {
    setTimeout(() => void worker.terminate(), STOP_MS).unref();
  };
  const failed = over.promise.then((failure): never => {
    const { code, message } = failure ?? { code: "parallel.rankLost", message: "the rank ended" };
    throw new OperationalError(code, message);
  });
  // After the rank is known it is `ended` that tells.
  failed.catch(() => {});
  const rank = await Promise.race([known.promise, failed]);
  return { rank, run: { ended: over.promise, stop } };
}
