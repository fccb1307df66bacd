/** @file The thread of an engine that dies or hangs when a prompt begins with the word for it. */
import { parentPort } from "node:worker_threads";
import { defined } from "../../../base/errors.ts";
import type { Engine, EngineEvent, EngineRequest, PrefixReader } from "../api.ts";
import { hostEngine } from "./engine-host.ts";

export const DIE = 1;
export const HANG = 2;

async function* generate({ prompt }: EngineRequest): AsyncGenerator<EngineEvent> {
  yield { kind: "started", promptTokens: 1, cachedTokens: 0, nearMiss: null, queueMs: 0 };
  if (prompt[0] === DIE) throw new Error("a bug");
  while (prompt[0] === HANG);
  const usage = {
    ...{ promptTokens: 1, cachedTokens: 0, cachedFromDisk: 0, nearMiss: null },
    ...{ completionTokens: 0, draftedTokens: 0, acceptedTokens: 0 },
  };
  yield { kind: "finished", reason: "length", stop: null, usage };
}

if (parentPort !== null) {
  const engine = { description: {}, generate, close: async () => {} };
  await hostEngine(
    defined(parentPort, "a port"),
    async () => engine as unknown as Engine & PrefixReader,
  );
}
