/**
 * @file Puts functions into a WebAssembly module that imports one shared memory (`env.memory`).
 *
 * Source: WebAssembly core specification §5.5; shared memories from the threads proposal.
 */
import { name, section, unsigned, vector } from "./encoding.ts";
import type { WasmFunction } from "./function.ts";

const MAGIC_AND_VERSION = [0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00];
const MEMORY_IMPORT = 2;
const SHARED_WITH_MAXIMUM = 3;
const MAX_PAGES = 65536;

/** The bytes of a module that exports `functions` under their keys. */
export function assembleModule(
  functions: Readonly<Record<string, WasmFunction>>,
): Uint8Array<ArrayBuffer> {
  const entries = Object.entries(functions);
  const memory = [MEMORY_IMPORT, SHARED_WITH_MAXIMUM, ...unsigned(0), ...unsigned(MAX_PAGES)];
  return Uint8Array.from([
    ...MAGIC_AND_VERSION,
    ...section(1, vector(entries.map(([, body]) => body.typeBytes))),
    ...section(2, vector([[...name("env"), ...name("memory"), ...memory]])),
    ...section(3, vector(entries.map((_, index) => unsigned(index)))),
    ...section(7, vector(entries.map(([key], index) => [...name(key), 0, ...unsigned(index)]))),
    ...section(10, vector(entries.map(([, body]) => body.codeBytes))),
  ]);
}

/** Compiles the module and binds it to `memory`; the exports take and return i32 numbers. */
export function instantiate<Name extends string>(
  bytes: Uint8Array<ArrayBuffer>,
  memory: WebAssembly.Memory,
): Record<Name, (...args: number[]) => void> {
  const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } });
  return instance.exports as Record<Name, (...args: number[]) => void>;
}
