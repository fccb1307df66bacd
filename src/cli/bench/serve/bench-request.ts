/** @file What benches ask of an engine: tokens alone, with nothing adjusted or reported. */

import type { EngineRequest } from "../../../inference/engine/api.ts";

type Asked = Pick<EngineRequest, "maxTokens" | "sampling" | "adjustments" | "draft">;

export function benchRequest(prompt: readonly number[], asked: Asked): EngineRequest {
  return {
    prompt: Int32Array.from(prompt),
    ...asked,
    seed: 1,
    stopStrings: [],
    endTokens: null,
    topLogProbabilities: null,
    promptLogProbabilities: false,
    constraint: null,
    tenant: "bench",
    deadlineMs: null,
  };
}
