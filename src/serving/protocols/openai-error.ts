/** @file An error's body in OpenAI's form; all four keys are always there. */
import type { Failure } from "../failure.ts";

export function openAiError({ message, type, param, code }: Failure): unknown {
  return { error: { message, type, param, code } };
}
