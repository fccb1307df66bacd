/** @file What the thread of an engine is given, and starting one. */
import { availableParallelism } from "node:os";
import { type MessagePort, Worker } from "node:worker_threads";
import { siblingModule } from "../../base/modules.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import type { Engine } from "../../inference/engine/api.ts";
import { openRemoteEngine } from "../../inference/engine/thread/remote-engine.ts";
import { readTokenizer } from "../../training/run/checkpoint.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

/** A folder for cached prefixes, which engines of all models and processes may share. */
export interface PrefixFolder {
  readonly folder: string;
  /** For everything in the folder. */
  readonly bytesMax: number;
}

export interface EngineOrigin {
  /** A checkpoint. */
  readonly path: string;
  readonly env: Environment;
  /** Where prefixes are kept beyond the engine's life; null: nowhere. */
  readonly prefixFolder: PrefixFolder | null;
  /** The notation of what weights are kept in; as they are stored if left out. */
  readonly weights?: string | undefined;
  /** Between the two engines of a split one; null: there is one. */
  readonly port: { readonly role: "prefill" | "decode"; readonly end: MessagePort } | null;
}

/** Threads that an environment gives to computing. */
export function numThreadsIn(env: Environment): number {
  return cpuOptionsFromEnvironment(env).numThreads ?? availableParallelism();
}

/** The same environment with so many threads, one at least. */
export function withThreads(env: Environment, count: number): Environment {
  return { ...env, HADAL_THREADS: `${Math.max(1, count)}` };
}

/** The engine of a checkpoint, in a thread of its own. */
export async function openEngineThread(origin: EngineOrigin): Promise<Engine> {
  const tokenizer = readTokenizer(origin.path);
  const worker = new Worker(siblingModule("./engine-thread", import.meta.url), {
    workerData: origin,
    transferList: origin.port === null ? [] : [origin.port.end],
  });
  try {
    return await openRemoteEngine(worker, tokenizer);
  } catch (failure) {
    await worker.terminate();
    throw failure;
  }
}
