/**
 * @file An engine whose routed experts are divided over ranks, on threads of this process; what is
 * common to it and to ranks that are processes (expert-process.ts).
 *
 *     request ─▶ rank 0: attention, latents, gate ─▶ rows to the ranks of their experts
 *                        tokens ◀─ sums in the order of the choices ◀─ results
 *
 * Rank 0 is the engine; the others hold experts and nothing else. Chunks of prompts go as two
 * micro-batches that alternate, where that is faster. Tokens are those of one engine, bit for bit.
 * A rank that fails ends them all, and what was asked fails with `engine.closed`.
 */
import { EventEmitter } from "node:events";
import { MessageChannel, type MessagePort } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import type { Failure } from "../../base/failure.ts";
import { siblingModule } from "../../base/modules.ts";
import type { Engine } from "../../inference/engine/api.ts";
import {
  type EngineThread,
  openRemoteEngine,
} from "../../inference/engine/thread/remote-engine.ts";
import { LEADER } from "../../inference/expert-ranks/expert-orders.ts";
import { moeLayerIndices } from "../../model/config.ts";
import { placesOver, type ShareOptions } from "../../model/expert-share.ts";
import { runToEnds } from "../../parallel/communicator/threads/run-on-threads.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { inferenceOptions, readModelConfig, readTokenizer } from "../../training/run/checkpoint.ts";
import type { EngineOrigin } from "./engine-origin.ts";

/** How the routed experts of a model are divided. */
export interface ExpertSettings {
  /** Two at least; they divide the experts, redundant ones included. */
  readonly numRanks: number;
  /** Copies beyond one of each expert. */
  readonly numRedundant: number;
  /** Tokens after which experts are placed anew by their load; 0: never. */
  readonly rebalanceTokens: number;
  /** Neighbouring ranks; all of them are on one host if left out. */
  readonly ranksPerHost?: number | undefined;
}

/** What each rank is given. */
export interface ExpertRankInput extends Omit<EngineOrigin, "port"> {
  readonly experts: ExpertSettings;
  /** They share the threads of `env`. */
  readonly ranksPerProcess: number;
}

export function shareOptions(experts: ExpertSettings): ShareOptions {
  const { numRanks, numRedundant, ranksPerHost = numRanks } = experts;
  return { ranksPerHost, numRedundant, byChoice: true, source: LEADER };
}

/** A run of the ranks, or of this process's part of them. */
export interface ExpertRun {
  /** With what ended it if that was a failure. */
  readonly ended: Promise<Pick<Failure, "code" | "message"> | null>;
  /** Ends it at once. */
  readonly stop: () => void;
}

/** Refuse what ranks would refuse, whichever of them came first. */
export function refuseUnfit(
  { path, weights }: Pick<EngineOrigin, "path" | "weights">,
  experts: ExpertSettings,
): void {
  const config = readModelConfig(path);
  const { numRanks } = experts;
  if (moeLayerIndices(config).length === 0) {
    throw new OperationalError(
      "parallel.experts",
      `${path} has no routed experts to divide over ${numRanks} ranks; serve it by one`,
    );
  }
  placesOver(numRanks, config, shareOptions(experts));
  inferenceOptions(path, weights);
}

/**
 * The engine of a checkpoint over ranks that run `program`. Refuses a number of them that does not
 * fit the model.
 */
export async function openExpertEngine(
  { path, env, prefixFolder, weights }: Omit<EngineOrigin, "port">,
  experts: ExpertSettings,
  program: URL = siblingModule("./expert-rank", import.meta.url),
): Promise<Engine> {
  refuseUnfit({ path, weights }, experts);
  const { numRanks } = experts;
  const { port1: line, port2: port } = new MessageChannel();
  const stop = new AbortController();
  const origin = { path, env, prefixFolder, weights };
  const input: ExpertRankInput = { ...origin, experts, ranksPerProcess: numRanks };
  const run = runToEnds({ numRanks, program, input, port, signal: stop.signal });
  const ended = run.then(({ failure }) => failure);
  return await openOverRanks(line, readTokenizer(path), { ended, stop: () => stop.abort() });
}

/** The engine of rank 0, at the other end of `line`. */
export async function openOverRanks(
  line: MessagePort,
  tokenizer: Tokenizer,
  run: ExpertRun,
): Promise<Engine> {
  try {
    return await openRemoteEngine(threadOf(line, run), tokenizer);
  } catch (failure) {
    run.stop();
    await run.ended;
    throw failure;
  }
}

/** The ranks as one thread: it talks on the line to rank 0, and fails when any rank does. */
function threadOf(line: MessagePort, run: ExpertRun): EngineThread {
  const events = new EventEmitter();
  line.on("message", (message) => events.emit("message", message));
  const ended = run.ended.then((failure) => {
    if (failure !== null) {
      events.emit("error", new OperationalError(failure.code, failure.message));
    }
    line.close();
    events.emit("exit");
  });
  type Listener = (value: never) => void;
  return {
    on: (event: string, listener: Listener) =>
      events.on(event, (value: unknown) => listener(value as never)),
    once: (event: string, listener: Listener) =>
      events.once(event, (value: unknown) => listener(value as never)),
    postMessage: (message) => line.postMessage(message),
    terminate: () => {
      run.stop();
      return ended;
    },
  };
}
