/** @file A sampled request that tests of opened engines send, with what a test changes of it. */
import type { Engine, EngineRequest } from "../../inference/engine/api.ts";

export function requestOf(
  engine: Engine,
  text: string,
  others: Partial<EngineRequest> = {},
): EngineRequest {
  return {
    prompt: Int32Array.of(engine.tokenizer.bosId, ...engine.tokenizer.encode(text)),
    maxTokens: 24,
    sampling: { temperature: 0.8, topK: 0, topP: 1, minP: 0 },
    adjustments: null,
    seed: 3,
    stopStrings: [],
    endTokens: [],
    topLogProbabilities: 1,
    promptLogProbabilities: false,
    constraint: null,
    tenant: "",
    deadlineMs: null,
    draft: "off",
    ...others,
  };
}
