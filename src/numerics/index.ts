/**
 * @file The package's entry `hadal/numerics`: number formats, scales, the tensor core's
 * accumulation, tolerances.
 */
export * from "./accumulate.ts";
export * from "./bf16.ts";
export * from "./e5m6.ts";
export * from "./fp8.ts";
export * from "./scales.ts";
export * from "./tolerance.ts";
