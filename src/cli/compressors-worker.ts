/**
 * @file The worker thread of `compressors.ts`: compresses `workerData.data` with one npm package,
 * posts the length.
 *
 * The packages are imported by computed names: one ships no types, the other its TypeScript sources
 * as types, which do not pass our compiler settings.
 */
import { parentPort, workerData } from "node:worker_threads";
import { defined } from "../base/errors.ts";
import type { CompressorPackage } from "./compressors.ts";

interface Bzip2 {
  init(): Promise<void>;
  compress(data: Uint8Array, blockSize: number, mostBytes: number): Uint8Array;
  readonly wasmModule: { _malloc(bytes: number): number; _free(address: number): void };
}

interface Lzma {
  compress(data: Uint8Array, mode: number): Uint8Array;
}

/** The best compression of each format. */
const LEVEL = 9;
/** libbzip2 wants about 8 MB for itself at level 9. */
const BZIP2_STATE_BYTES = 16 * 2 ** 20;

const compress: Record<CompressorPackage, (data: Uint8Array) => Promise<number>> = {
  "bzip2-wasm": async (data) => {
    const { default: Bzip2 } = await load<{ default: new () => Bzip2 }>("bzip2-wasm");
    const bzip2 = new Bzip2();
    await bzip2.init();
    // libbzip2's own bound for bytes that do not compress.
    const mostBytes = Math.ceil(data.length * 1.01) + 600;
    // `compress` keeps a view of the memory while it allocates three such arrays: grow the memory
    // before it does.
    bzip2.wasmModule._free(bzip2.wasmModule._malloc(3 * mostBytes + BZIP2_STATE_BYTES));
    return bzip2.compress(data, LEVEL, mostBytes).length;
  },
  lzma1: async (data) => (await load<Lzma>("lzma1")).compress(data, LEVEL).length,
};

function load<Exports>(packageName: string): Promise<Exports> {
  return import(packageName) as Promise<Exports>;
}

const { packageName, data } = workerData as { packageName: CompressorPackage; data: Uint8Array };
defined(parentPort, "the thread that started this worker").postMessage(
  await compress[packageName](data),
);
