/**
 * @file The operating system's part of native code: pages, through koffi, a foreign-function
 * package.
 *
 * koffi is loaded when first asked for, so that its absence (an unusual platform, an install
 * without its binary) is an answer and not a crash. Pages are mapped writable, filled, then made
 * executable: never both at once.
 */
import { createRequire } from "node:module";
import { OperationalError } from "../../base/errors.ts";
import { roundUp } from "../../base/integers.ts";

/** What is used of koffi's interface. */
interface Koffi {
  load(path: string | null): { func(prototype: string): NativeCall };
  proto(prototype: string): unknown;
  decode(address: bigint, type: unknown): NativeCall;
  address(bytes: Uint8Array): bigint;
}

type NativeCall = (...args: readonly (number | Uint8Array)[]) => number;

const PAGE_BYTES = 4096;
const READ_WRITE = 3;
const READ_EXECUTE = 5;
const MAP_PRIVATE_ANONYMOUS: Readonly<Record<string, number>> = { linux: 0x22, darwin: 0x1002 };
/** Linux: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), once a process. */
const REQUEST_TILES = { systemCall: 158, request: 0x1023, feature: 18 } as const;
/** Linux: madvise(MADV_HUGEPAGE). */
const ADVISE_HUGE_PAGES = 14;

/** The few calls that native code needs of the operating system. */
export interface NativeLibrary {
  /** Map `code` as executable pages and return its address. They are never unmapped. */
  mapExecutable(code: Uint8Array): number;
  /** A callable for the code at `address`. */
  callable(address: number, prototype: NativePrototype): NativeCall;
  addressOf(bytes: Uint8Array): number;
  requestTiles(): boolean;
  /** Ask that what is first touched in this range comes as huge pages, where there are any. */
  useHugePages(address: number, byteLength: number): void;
}

/**
 * Addresses cross as 64-bit integers: a plain number holds them exactly, without a BigInt a call.
 */
const PROTOTYPES = {
  kernel: "void hadal_kernel(int64_t, int64_t, int64_t, int64_t)",
  query: "void hadal_query(uint8_t *out, int64_t, int64_t)",
} as const;

export type NativePrototype = keyof typeof PROTOTYPES;

const prototypes = new Map<NativePrototype, unknown>();

/** Loads koffi and the C library; throws what goes wrong there. */
export function openNativeLibrary(platform: NodeJS.Platform): NativeLibrary {
  const koffi = createRequire(import.meta.url)("koffi") as Koffi;
  const c = koffi.load(null);
  const mmap = c.func("int64_t mmap(int64_t, size_t, int, int, int, int64_t)");
  const mprotect = c.func("int mprotect(int64_t, size_t, int)");
  const memcpy = c.func("int64_t memcpy(int64_t, const uint8_t *, size_t)");
  const madvise = c.func("int madvise(int64_t, size_t, int)");
  const mapFlags = MAP_PRIVATE_ANONYMOUS[platform] ?? 0;
  return {
    mapExecutable: (code) => {
      const byteLength = roundUp(code.byteLength, PAGE_BYTES);
      const address = mmap(0, byteLength, READ_WRITE, mapFlags, -1, 0);
      if (address <= 0) throw refused("map memory", byteLength);
      memcpy(address, code, code.byteLength);
      if (mprotect(address, byteLength, READ_EXECUTE) !== 0) {
        throw refused("make memory executable", byteLength);
      }
      return address;
    },
    callable: (address, name) => {
      let prototype = prototypes.get(name);
      if (prototype === undefined) {
        prototype = koffi.proto(PROTOTYPES[name]);
        prototypes.set(name, prototype);
      }
      return koffi.decode(BigInt(address), prototype);
    },
    addressOf: (bytes) => Number(koffi.address(bytes)),
    requestTiles: () => {
      if (platform !== "linux") return false;
      const syscall = c.func("int64_t syscall(int64_t, int64_t, int64_t)");
      const { systemCall, request, feature } = REQUEST_TILES;
      return syscall(systemCall, request, feature) === 0;
    },
    useHugePages: (address, byteLength) => {
      // Advice: a kernel that refuses it goes on with small pages, and so do we.
      if (platform === "linux") madvise(address, byteLength, ADVISE_HUGE_PAGES);
    },
  };
}

function refused(what: string, byteLength: number): OperationalError {
  return new OperationalError(
    "device.native",
    `the operating system refused to ${what} (${byteLength} bytes) for machine code; ` +
      "set HADAL_NATIVE=0 to run without it",
  );
}
