/**
 * @file The package's entry `hadal/kernels`: a device with its kernels, tensors, and the doors of
 * all operations.
 */
export { type CpuDeviceOptions, cpuOptionsFromEnvironment } from "../device/cpu/cpu-device.ts";
export type { Device } from "../device/device.ts";
export { Arena, type ArenaMark } from "../tensor/arena.ts";
export { DTYPE_BYTES, DTYPES, type DType, type FloatType } from "../tensor/dtype.ts";
export * from "../tensor/scaled-tensor.ts";
export * from "../tensor/tensor.ts";
export { fillFrom, view, viewSpan } from "../tensor/view.ts";
export * from "./accumulate/contract.ts";
export * from "./adamw/contract.ts";
export * from "./attention/contract.ts";
export * from "./cast-rows/contract.ts";
export { openCpuDevice } from "./cpu.ts";
export * from "./cross-entropy/contract.ts";
export * from "./dispatch/contract.ts";
export * from "./gather/contract.ts";
export * from "./grouped-matmul/contract.ts";
export * from "./grouped-scaled-matmul/contract.ts";
export * from "./matmul/contract.ts";
export * from "./quantize-tiles/contract.ts";
export * from "./rms-norm/contract.ts";
export * from "./rope/contract.ts";
export * from "./route/contract.ts";
export * from "./scaled-matmul/contract.ts";
export * from "./softmax/contract.ts";
export * from "./swiglu/contract.ts";
