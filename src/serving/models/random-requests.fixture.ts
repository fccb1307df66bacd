/**
 * @file Requests of all kinds at random, and all that an engine tells of them: for tests that
 * compare engines.
 */
import { Random } from "../../base/random.ts";
import type { Engine, EngineEvent, EngineRequest } from "../../inference/engine/api.ts";

export interface Told {
  readonly said: readonly unknown[];
  /** Of the prompt. */
  readonly usage: unknown;
}

/** Everything that is told of requests that run at once. */
export function collectAll(
  engine: Engine,
  requests: readonly EngineRequest[],
): Promise<readonly Told[]> {
  return Promise.all(
    requests.map(async (request) => {
      const said: unknown[] = [];
      let usage: unknown;
      for await (const event of engine.generate(request, new AbortController().signal)) {
        if (event.kind === "tokens") said.push(...event.logProbabilities!);
        if (event.kind === "prompt") said.push(event.logProbabilities);
        if (event.kind === "finished") usage = cachedTokensOf(event);
      }
      return { said, usage };
    }),
  );
}

function cachedTokensOf({ usage }: Extract<EngineEvent, { kind: "finished" }>): number {
  return usage.cachedTokens;
}

export function randomRequests(seed: number, count: number): EngineRequest[] {
  const random = new Random(seed);
  const token = (): number => 20 + random.below(900);
  return Array.from({ length: count }, (_, index) => ({
    prompt: Int32Array.from({ length: 1 + random.below(300) }, token),
    maxTokens: 1 + random.below(20),
    sampling: { temperature: random.below(2), topK: 0, topP: 1, minP: 0 },
    adjustments: null,
    seed: index,
    stopStrings: [],
    endTokens: [],
    topLogProbabilities: 1,
    promptLogProbabilities: index % 5 === 4,
    constraint: null,
    tenant: `t${index % 2}`,
    deadlineMs: null,
    draft: index % 2 === 0 ? "auto" : "off",
  }));
}
