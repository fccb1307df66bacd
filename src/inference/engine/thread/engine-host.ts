/**
 * @file The side of an engine's thread: opens the engine and answers messages until it is closed.
 *
 * Only OperationalErrors are told; anything else ends the thread, which its user notices.
 */
import type { MessagePort } from "node:worker_threads";
import { OperationalError } from "../../../base/errors.ts";
import type { Engine } from "../api.ts";
import type { Failure, FromEngine, ToEngine } from "./messages.ts";

export async function hostEngine(port: MessagePort, open: () => Promise<Engine>): Promise<void> {
  const post = (message: FromEngine): void => port.postMessage(message);
  const aborts = new Map<number, AbortController>();
  let engine: Engine;
  try {
    engine = await open();
  } catch (error) {
    post({ kind: "notOpened", failure: failureOf(error) });
    port.close();
    return;
  }
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
  engine: Engine,
  message: Exclude<ToEngine, { kind: "abort" | "ping" | "close" }>,
  signal: AbortSignal,
  post: (message: FromEngine) => void,
): Promise<void> {
  const { id } = message;
  if (message.kind === "generate") {
    for await (const event of engine.generate(message.request, signal)) {
      post({ kind: "event", id, event });
    }
  } else if (message.kind === "embed") {
    const values = await engine.embed(message.tokens, message.tenant, signal);
    post({ kind: "embedding", id, values });
  } else {
    post({ kind: "metrics", id, metrics: await engine.metrics() });
  }
}

function failureOf(error: unknown): Failure {
  if (!(error instanceof OperationalError)) throw error;
  const { code, message, details } = error;
  return { code, message, details };
}
