/**
 * @file The thread in which a process that an MPI launcher has started is a rank of an engine: the
 * engine, or experts for it. The process's main thread stays with HTTP.
 */
import { type MessagePort, parentPort, workerData } from "node:worker_threads";
import { defined, OperationalError } from "../../base/errors.ts";
import type { Failure } from "../../base/failure.ts";
import { LEADER } from "../../inference/expert-ranks/expert-orders.ts";
import { runUnderMpi } from "../../parallel/communicator/mpi/run-under-mpi.ts";
import type { ExpertRankInput } from "./expert-engine.ts";
import { runRank } from "./expert-rank.ts";

export interface ExpertProcessStart {
  readonly input: ExpertRankInput;
  /** From the server; used by the engine's rank alone. */
  readonly port: MessagePort;
}

/** What the thread says: first which rank it is, then perhaps why it failed. */
export type ExpertProcessReport =
  | { readonly kind: "rank"; readonly rank: number }
  | { readonly kind: "failed"; readonly failure: Pick<Failure, "code" | "message"> };

const { input, port } = workerData as ExpertProcessStart;
const starter = defined(parentPort, "the thread that started this one");
const report = (message: ExpertProcessReport): void => starter.postMessage(message);

try {
  await runUnderMpi(async (context) => {
    const { rank } = context;
    report({ kind: "rank", rank });
    if (rank !== LEADER) port.close();
    await runRank({ ...context, input, port: rank === LEADER ? port : undefined });
  });
} catch (error) {
  // Not thrown: the thread that talks to MPI lives as long as this one, and tells the others.
  const code = error instanceof OperationalError ? error.code : "parallel.rankFailed";
  const message = error instanceof Error ? error.message : String(error);
  report({ kind: "failed", failure: { code, message } });
}
