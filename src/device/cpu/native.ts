/**
 * @file Native code: executable pages and calls into them, on x86-64 Linux and macOS.
 *
 * Pages are written first and made executable after: never both at once. Every kernel has one
 * signature,
 *
 *     void kernel(const double *slots, int64_t firstTask, int64_t endTask, uint8_t *memoryBase)
 *
 * in the System V calling convention, and must return with tiles released and upper vector halves
 * zeroed. Code is never unloaded: a process emits a few hundred kilobytes at most. A call costs
 * about 90 ns. Where native code is off (`HADAL_NATIVE=0`) or impossible, the reason is the answer.
 */
import { OperationalError } from "../../base/errors.ts";
import {
  type CpuFeatures,
  detectFeatures,
  emitCpuid,
  emitXgetbv,
  maskFeatures,
  type ProcessorQueries,
} from "./features.ts";
import { type NativeLibrary, openNativeLibrary } from "./native-library.ts";

/** Emitted code, ready to run on any thread of the process. */
export interface NativeFunction {
  /** Where the code lies; its pages are readable and executable, never writable again. */
  readonly address: number;
  /** All four are whole numbers; addresses stay below 2^53 on every x86-64 system. */
  call(slotsAddress: number, firstTask: number, endTask: number, memoryBase: number): void;
}

/** The door to native code on this machine; absent where it is off or impossible. */
export interface NativeRuntime {
  readonly features: CpuFeatures;
  /** Map, write, then protect `code` as read-and-execute. */
  load(code: Uint8Array): NativeFunction;
  /** Native address of a view's first byte. It does not keep the buffer alive. */
  addressOf(bytes: Uint8Array): number;
  /** Of a range that will be filled: a few huge pages where the system has them, or nothing. */
  useHugePages(address: number, byteLength: number): void;
}

/** A runtime, or why there is none. */
export interface NativeAttempt {
  readonly runtime: NativeRuntime | null;
  /** For people; empty if there is a runtime. */
  readonly reason: string;
}

/** What decides besides the processor; the defaults are this process's own. */
export interface NativeHost {
  readonly platform: NodeJS.Platform;
  readonly architecture: string;
  readonly environment: Readonly<Record<string, string | undefined>>;
  openLibrary(platform: NodeJS.Platform): NativeLibrary;
}

const THIS_HOST: NativeHost = {
  platform: process.platform,
  architecture: process.arch,
  environment: process.env,
  openLibrary: openNativeLibrary,
};

/** Native code on this machine. Cheap enough to be called once a thread (about a millisecond). */
export function createNativeRuntime(host: NativeHost = THIS_HOST): NativeAttempt {
  const { platform, architecture, environment } = host;
  if (environment["HADAL_NATIVE"] === "0") return refuse("HADAL_NATIVE=0 turns native code off");
  if (architecture !== "x64" || (platform !== "linux" && platform !== "darwin")) {
    return refuse(`native code needs x64 Linux or macOS; this is ${architecture} ${platform}`);
  }
  let library: NativeLibrary;
  try {
    library = host.openLibrary(platform);
  } catch (cause) {
    return refuse(`the package koffi, which calls native code, did not load: ${firstLine(cause)}`);
  }
  try {
    const detected = detectFeatures(processorQueries(library));
    const allowed = environment["HADAL_CPU_FEATURES"];
    const features = maskFeatures(detected, allowed);
    if (!features.avx512) {
      const hidden = detected.avx512 ? `; HADAL_CPU_FEATURES=${allowed} hides it` : "";
      return refuse(`this processor or operating system has no AVX-512${hidden}`);
    }
    return { runtime: runtimeOver(library, features), reason: "" };
  } catch (cause) {
    // Executable pages may be forbidden here; a wrong setting is the user's to hear about.
    if (!(cause instanceof OperationalError) || cause.code !== "device.native") throw cause;
    return refuse(cause.message);
  }
}

function runtimeOver(library: NativeLibrary, features: CpuFeatures): NativeRuntime {
  return {
    features,
    load: (code) => {
      const address = library.mapExecutable(code);
      return { address, call: library.callable(address, "kernel") };
    },
    addressOf: (bytes) => library.addressOf(bytes),
    useHugePages: (address, byteLength) => library.useHugePages(address, byteLength),
  };
}

function processorQueries(library: NativeLibrary): ProcessorQueries {
  const load = (code: Uint8Array): ((...args: readonly (number | Uint8Array)[]) => number) =>
    library.callable(library.mapExecutable(code), "query");
  const askCpuid = load(emitCpuid());
  const ask = (query: typeof askCpuid, leaf: number, subleaf: number): Int32Array => {
    const answer = new Int32Array(4);
    query(new Uint8Array(answer.buffer), leaf, subleaf);
    return answer;
  };
  return {
    cpuid: (leaf, subleaf) => {
      const [eax = 0, ebx = 0, ecx = 0, edx = 0] = ask(askCpuid, leaf, subleaf);
      return { eax, ebx, ecx, edx };
    },
    xcr0: () => ask(load(emitXgetbv()), 0, 0)[0] ?? 0,
    requestTiles: () => library.requestTiles(),
  };
}

function refuse(reason: string): NativeAttempt {
  return { runtime: null, reason };
}

function firstLine(cause: unknown): string {
  const message = cause instanceof Error ? cause.message : String(cause);
  return message.split("\n")[0] ?? message;
}
