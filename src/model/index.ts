/** @file The package's entry `hadal/model`: configurations, presets and the model itself. */
export * from "./config.ts";
export { countParameters, type ParameterCounts } from "./counts.ts";
export { parseHuggingFaceConfig, toHuggingFaceConfig } from "./hugging-face-config.ts";
export { type MemoryPrediction, predictMemory } from "./memory.ts";
export { Model } from "./model.ts";
export type * from "./model-types.ts";
export { PRESETS, type Preset, presetConfig } from "./presets.ts";
