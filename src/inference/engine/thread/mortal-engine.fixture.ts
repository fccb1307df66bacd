/**
 * @file The thread of an engine that dies, hangs or takes long when a prompt begins with the word
 * for it.
 */
import { parentPort } from "node:worker_threads";
import { defined } from "../../../base/errors.ts";
import type { Engine, EngineEvent, EngineRequest, PrefixReader } from "../api.ts";
import { hostEngine, signsOfLife } from "./engine-host.ts";

export const DIE = 1;
export const HANG = 2;
/** A step of a second whose launches show that it goes on. */
export const TAKE_LONG = 3;

async function* generate({ prompt }: EngineRequest): AsyncGenerator<EngineEvent> {
  yield { kind: "started", promptTokens: 1, cachedTokens: 0, nearMiss: null, queueMs: 0 };
  if (prompt[0] === DIE) throw new Error("a bug");
  while (prompt[0] === HANG);
  if (prompt[0] === TAKE_LONG) takeLong();
  const usage = {
    ...{ promptTokens: 1, cachedTokens: 0, cachedFromDisk: 0, nearMiss: null },
    ...{ completionTokens: 0, draftedTokens: 0, acceptedTokens: 0 },
  };
  yield { kind: "finished", reason: "length", stop: null, usage };
}

function takeLong(): void {
  const onLaunch = signsOfLife(defined(parentPort, "a port"), 10);
  for (const endMs = performance.now() + 1000; performance.now() < endMs; ) onLaunch();
}

if (parentPort !== null) {
  const engine = { description: {}, generate, close: async () => {} };
  await hostEngine(
    defined(parentPort, "a port"),
    async () => engine as unknown as Engine & PrefixReader,
  );
}
