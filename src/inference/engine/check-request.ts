/** @file What an engine refuses before a request is queued. */
import { OperationalError } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";
import type { EngineDescription, EngineRequest } from "./api.ts";

const TOP_MAX = 1024;

export function checkRequest(request: EngineRequest, description: EngineDescription): void {
  const { prompt, maxTokens, endTokens, topLogProbabilities, deadlineMs } = request;
  const { healing, constraint } = request;
  const { contextTokens, vocabSize } = description;
  const isToken = (token: number): boolean => isIntegerIn(token, 0, vocabSize - 1);
  refuseUnless(isIntegerIn(maxTokens, 0, 2 ** 31 - 1), "inference.length", () => {
    return `the most tokens to generate (${maxTokens}) must be a whole number of at least 0`;
  });
  refuseUnless(prompt.length > 0, "inference.prompt", () => {
    return "the prompt has no token; begin it with the begin-of-sequence token";
  });
  const room = maxTokens === 0 ? contextTokens : contextTokens - 1;
  refuseUnless(prompt.length <= room, "engine.context", () => {
    const given = `the prompt has ${prompt.length} tokens, the context takes ${contextTokens}`;
    return `${given} including what is generated; shorten the prompt`;
  });
  const stranger = [...prompt, ...(endTokens ?? [])].find((token) => !isToken(token));
  refuseUnless(stranger === undefined, "inference.token", () => {
    return `token ${stranger} is outside the vocabulary of ${vocabSize}`;
  });
  const isHealed = healing !== undefined && healing !== null;
  refuseUnless(!isHealed || (constraint === null && maxTokens > 0), "inference.prompt", () => {
    return "a prompt is healed where text is generated without a constraint; leave healing out";
  });
  const top = topLogProbabilities ?? 0;
  refuseUnless(isIntegerIn(top, 0, TOP_MAX), "inference.sampling", () => {
    return `top log-probabilities (${top}) must be a whole number from 0 to ${TOP_MAX}`;
  });
  refuseUnless(deadlineMs === null || deadlineMs >= 0, "engine.deadline", () => {
    return `a deadline in ${deadlineMs} ms must be a number >= 0`;
  });
}

function refuseUnless(
  allowed: boolean,
  code: OperationalError["code"],
  message: () => string,
): void {
  if (!allowed) throw new OperationalError(code, message());
}
