/**
 * @file The side of an engine's thread: opens the engine and answers messages until it is closed.
 *
 * Only OperationalErrors are told; anything else ends the thread, which its user notices.
 */
import type { MessagePort } from "node:worker_threads";
import { type Failure, failureOf } from "../../../base/failure.ts";
import type { Engine, PrefixReader } from "../api.ts";
import type { FromEngine, ToEngine } from "./messages.ts";

type Hosted = Engine & PrefixReader;
type Post = (message: FromEngine, transfer?: readonly ArrayBuffer[]) => void;

/** Open an engine and answer for it on `port`; the engine, if it could be opened. */
export async function hostEngine(
  port: MessagePort,
  open: () => Promise<Hosted>,
): Promise<Hosted | null> {
  let engine: Hosted;
  try {
    engine = await open();
  } catch (error) {
    port.postMessage({ kind: "notOpened", failure: failureOf(error) } satisfies FromEngine);
    port.close();
    return null;
  }
  answerOn(port, engine);
  return engine;
}

/** By feel: far more often than anyone asks. */
const SIGN_MS = 1000;

/** To be called again and again while a step runs: tells on `port` now and then that it does. */
export function signsOfLife(port: MessagePort, everyMs: number = SIGN_MS): () => void {
  let lastMs = 0;
  return () => {
    const now = performance.now();
    if (now - lastMs < everyMs) return;
    lastMs = now;
    port.postMessage({ kind: "pong" } satisfies FromEngine);
  };
}

/** Answer for an open engine on a port. */
export function answerOn(port: MessagePort, engine: Hosted): void {
  const post: Post = (message, transfer = []) => port.postMessage(message, [...transfer]);
  const aborts = new Map<number, AbortController>();
  const answer = async (id: number, work: (signal: AbortSignal) => Promise<void>) => {
    const controller = new AbortController();
    aborts.set(id, controller);
    let failure: Failure | null = null;
    try {
      await work(controller.signal);
    } catch (error) {
      failure = failureOf(error);
    }
    aborts.delete(id);
    if (failure !== null && !controller.signal.aborted) post({ kind: "failed", id, failure });
    post({ kind: "end", id });
  };
  port.on("message", (message: ToEngine) => {
    if (message.kind === "ping") post({ kind: "pong" });
    else if (message.kind === "abort") aborts.get(message.id)?.abort();
    else if (message.kind === "close") void engine.close().then(() => port.close());
    else {
      const { id } = message;
      void answer(id, (signal) => perform(engine, message, signal, post));
    }
  });
  post({ kind: "open", description: engine.description });
}

async function perform(
  engine: Hosted,
  message: Exclude<ToEngine, { kind: "abort" | "ping" | "close" }>,
  signal: AbortSignal,
  post: Post,
): Promise<void> {
  const { id, kind } = message;
  if (kind === "generate") {
    for await (const event of engine.generate(message.request, signal)) {
      post({ kind: "event", id, event });
    }
  } else if (kind === "embed") {
    const values = await engine.embed(message.tokens, message.tenant, signal);
    post({ kind: "embedding", id, values });
  } else if (kind === "readPrefix") {
    for await (const part of engine.readPrefix(message.request, signal)) {
      post({ kind: "prefix", id, part }, part.kind === "block" ? [part.payload.buffer] : []);
    }
  } else {
    post({ kind: "metrics", id, metrics: await engine.metrics() });
  }
}
