/**
 * @file The package's entry `hadal/inference`: sessions over a latent cache, sampling, generation.
 */
export { Decoder } from "./decoder.ts";
export { exportGguf } from "./export-gguf.ts";
export { type GenerateOptions, type Generation, generate, type StopReason } from "./generate.ts";
export { continuationPrompt, gapPrompt, type Prompt } from "./prompt.ts";
export { GREEDY, type SamplingOptions } from "./sampler.ts";
export { Session } from "./session.ts";
