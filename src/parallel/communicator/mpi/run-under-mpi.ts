/**
 * @file Runs a rank program as one of the processes that an MPI launcher has started.
 *
 * Each process is one rank: its main thread runs the program, a second one talks to MPI meanwhile.
 * If a rank fails, all learn why, and a moment later MPI ends whatever still runs; the launcher
 * then reports failure as well.
 */
import { Worker } from "node:worker_threads";
import { assert, defined, OperationalError } from "../../../base/errors.ts";
import { siblingModule } from "../../../base/modules.ts";
import { CpuMemory } from "../../../device/cpu/memory.ts";
import type { Communicator } from "../communicator.ts";
import { worldOf } from "../member-communicator.ts";
import { type RankOptions, type RunRank, WATCHDOG_MS } from "../rank-program.ts";
import { Signs } from "../signs.ts";
import type {
  CommunicationJoin,
  CommunicationReport,
  CommunicationStart,
} from "./communication-thread.ts";
import { beatBytes } from "./courier.ts";
import { Desk } from "./desk.ts";
import { attachMpi } from "./library.ts";
import { Mailbox } from "./mailbox.ts";
import { MPI_SIDE, MpiTransport } from "./mpi-transport.ts";

export interface MpiRun extends RankOptions {
  readonly input?: unknown;
}

/** This rank's result. */
export async function runUnderMpi(runRank: RunRank, run: MpiRun = {}): Promise<unknown> {
  const { input, watchdogMs = WATCHDOG_MS } = run;
  const signs = new Signs(2);
  const start: CommunicationStart = { signs: signs.buffer };
  const url = siblingModule("./communication-thread", import.meta.url);
  const worker = new Worker(url, { workerData: start });
  const exited = new Promise((resolve) => {
    worker.once("exit", resolve);
  });
  const { rank, size } = await readiness(worker);
  const mailbox = new Mailbox(size);
  let world: Communicator | null = null;
  const join = async (memory: CpuMemory): Promise<Communicator> => {
    assert(world === null, "a rank joins once");
    // Both call MPI, one at a time: the other thread begins when this one is done.
    const mpi = attachMpi();
    const desk = new Desk(mpi);
    const beats = new SharedArrayBuffer(beatBytes(size));
    const parts = { memory: memory.wasm, beats };
    const told: CommunicationJoin = { ...parts, mailbox: mailbox.buffer, desk: desk.buffers };
    worker.postMessage(told);
    const options = { rank, size, memory, mailbox, signs, desk, watchdogMs };
    world = worldOf(new MpiTransport({ ...options, mpi, beats }));
    return world;
  };
  try {
    const value = await runRank({ rank, size, input, join });
    const joined = defined(world as Communicator | null, `the communicator of rank ${rank}`);
    joined.barrier().wait();
    mailbox.post({ kind: "close", ticket: 0, peer: 0, tag: 0, byteOffset: 0, byteLength: 0 });
    signs.ring(MPI_SIDE);
    await exited;
    return value;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    signs.fail({ code: "parallel.rankFailed", message: `rank ${rank} failed: ${reason}` });
    // A rank that fails before it joins lets its communication thread begin, which tells the
    // others.
    if (world === null) await join(CpuMemory.create(null));
    throw error;
  }
}

function readiness(worker: Worker): Promise<{ readonly rank: number; readonly size: number }> {
  return new Promise((resolve, reject) => {
    worker.once("error", reject);
    worker.once("message", (report: CommunicationReport) => {
      if (report.kind === "ready") resolve(report);
      else reject(new OperationalError(report.code, report.message));
    });
  });
}
