/**
 * @file Runs a rank program on threads of this process: the communicator that needs nothing
 * installed.
 *
 * If a rank fails, the others are told and end by themselves; what still runs after a moment is
 * terminated. The error is that of the rank which failed first.
 */
import { setTimeout as delay } from "node:timers/promises";
import { type MessagePort, Worker } from "node:worker_threads";
import { assert, InvariantError, OperationalError } from "../../../base/errors.ts";
import { isIntegerIn } from "../../../base/integers.ts";
import { siblingModule } from "../../../base/modules.ts";
import { type RankOptions, WATCHDOG_MS } from "../rank-program.ts";
import { Signs } from "../signs.ts";
import type { Failure } from "../transport.ts";
import type { RankReport, RankStart } from "./rank-thread.ts";
import { Rings } from "./rings.ts";

const MAX_RANKS = 256;
/** Ranks that hear of a failure end at once, unless they compute. */
const GRACE_MS = 500;

export interface ThreadRun extends RankOptions {
  readonly numRanks: number;
  /** The module that exports `runRank`. */
  readonly program: URL;
  /** Given to every rank; plain data. */
  readonly input?: unknown;
  /** Goes to rank 0. */
  readonly port?: MessagePort;
  /** Ends all ranks at once. */
  readonly signal?: AbortSignal;
}

/** How a rank ended: with a value, or with what was thrown in its thread. */
export type RankEnd =
  | { readonly ok: true; readonly value: unknown }
  | { readonly ok: false; readonly error: unknown };

/** The result of every rank. */
export async function runOnThreads(run: ThreadRun): Promise<unknown[]> {
  const { ends, failure } = await runToEnds(run);
  if (failure !== null) throw new OperationalError(failure.code, failure.message);
  return ends.map((end) => {
    if (!end.ok) throw new InvariantError("a rank ended without a result and without a failure");
    return end.value;
  });
}

/** How each rank ended, and the first failure; does not throw what ranks threw. */
export async function runToEnds(run: ThreadRun): Promise<{
  readonly ends: readonly RankEnd[];
  readonly failure: Failure | null;
}> {
  const { numRanks, program, input, watchdogMs = WATCHDOG_MS, signal } = run;
  assert(isIntegerIn(numRanks, 1, MAX_RANKS), `numRanks (${numRanks}): 1 to ${MAX_RANKS}`);
  const signs = new Signs(numRanks);
  const rings = new Rings(numRanks);
  const workers = Array.from({ length: numRanks }, (_, rank) => {
    const port = rank === 0 ? run.port : undefined;
    const start: RankStart = {
      rank,
      size: numRanks,
      signs: signs.buffer,
      rings: rings.buffer,
      programUrl: program.href,
      input,
      port,
      watchdogMs,
    };
    return new Worker(siblingModule("./rank-thread", import.meta.url), {
      workerData: start,
      transferList: port === undefined ? [] : [port],
    });
  });
  introduce(workers);
  const ends = workers.map((worker, rank) => endOf(worker, rank, signs));
  const failed = ends.map(async (end) => {
    if ((await end).ok) await new Promise(() => {});
  });
  const graceOver = Promise.race(failed).then(() => delay(GRACE_MS));
  const stopped = new Promise((resolve) => signal?.addEventListener("abort", resolve));
  await Promise.race([Promise.all(ends), graceOver, stopped]);
  await Promise.all(workers.map((worker) => worker.terminate()));
  return { ends: await Promise.all(ends), failure: signs.failure() };
}

/** When every rank has handed in its memory, each gets those of all. */
function introduce(workers: readonly Worker[]): void {
  const memories: WebAssembly.Memory[] = [];
  let numJoined = 0;
  for (const [rank, worker] of workers.entries()) {
    worker.on("message", (report: RankReport) => {
      if (report.kind !== "memory") return;
      memories[rank] = report.memory;
      numJoined++;
      if (numJoined < workers.length) return;
      for (const other of workers) other.postMessage(memories);
    });
  }
}

function endOf(worker: Worker, rank: number, signs: Signs): Promise<RankEnd> {
  return new Promise((resolve) => {
    let end: RankEnd | null = null;
    worker.on("message", (report: RankReport) => {
      if (report.kind === "result") end = { ok: true, value: report.value };
    });
    worker.once("error", (error) => {
      end = { ok: false, error };
    });
    worker.once("exit", (code) => {
      if (end === null) {
        const message = `rank ${rank} was lost: its thread ended early, with code ${code}`;
        signs.fail({ code: "parallel.rankLost", message });
        end = { ok: false, error: new OperationalError("parallel.rankLost", message) };
      } else if (!end.ok) {
        const reason = end.error instanceof Error ? end.error.message : String(end.error);
        const message = `rank ${rank} failed: ${reason}`;
        signs.fail({ code: "parallel.rankFailed", message });
      }
      resolve(end);
    });
  });
}
