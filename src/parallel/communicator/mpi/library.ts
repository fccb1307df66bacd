/**
 * @file The few functions of MPI that are used, called through koffi, a foreign-function package.
 *
 * Open MPI alone: its handles are pointers and its constants have addresses of their own, while
 * MPICH's are integers. The library is found at run time, where the dynamic linker finds it.
 * Names and parameters are the standard's (MPI 4.0, chapters 3 and 11).
 */
import { createRequire } from "node:module";
import { OperationalError } from "../../../base/errors.ts";

interface Koffi {
  load(path: string, options: { global: boolean }): KoffiLibrary;
  address(bytes: Uint8Array): bigint;
}

interface KoffiLibrary {
  func(name: string, result: string, parameters: readonly string[]): NativeCall;
  symbol(name: string): bigint;
}

type NativeArgument = number | bigint | null | NodeJS.TypedArray;
type NativeCall = (...values: readonly NativeArgument[]) => number;

const NAMES = ["libmpi.so.40", "libmpi.so", "libmpi.40.dylib", "libmpi.dylib"];

/** Several threads call MPI, one at a time: MPI_THREAD_SERIALIZED. */
const THREAD_SERIALIZED = 2;
const ERR_IN_STATUS = 18;

/** An MPI_Status of Open MPI in 32-bit words, and where it holds the error and the bytes. */
export const STATUS_WORDS = 6;
export const STATUS_ERROR = 2;
export const STATUS_COUNT = 4;

export const HANDLE_BYTES = 8;

/** Addresses of the requests that `testSome` looks at, and of what it finds. */
export interface Requests {
  readonly handles: number;
  /** How many were complete. */
  readonly count: number;
  readonly indices: number;
  readonly statuses: number;
}

export interface MpiLibrary {
  readonly rank: number;
  readonly size: number;
  addressOf(bytes: Uint8Array): number;
  /** Starts a send or a receive of bytes at an address; the handle goes to the address `handle`. */
  isend(handle: number, message: NativeMessage): void;
  irecv(handle: number, message: NativeMessage): void;
  /**
   * Which of the first `numRequests` requests are complete; whether statuses say what became of
   * each, for something has failed.
   */
  testSome(requests: Requests, numRequests: number): boolean;
  finalize(): void;
  abort(): void;
}

export interface NativeMessage {
  readonly address: number;
  readonly byteLength: number;
  readonly peer: number;
  readonly tag: number;
}

/** Loads and initialises MPI; throws an `OperationalError` that says what is missing. */
export function openMpi(): MpiLibrary {
  const koffi = createRequire(import.meta.url)("koffi") as Koffi;
  const library = loadLibrary(koffi);
  const call = bindFunctions(library);
  const provided = new Int32Array(new SharedArrayBuffer(4));
  check("MPI_Init_thread", call.initThread(null, null, THREAD_SERIALIZED, provided));
  if (provided[0]! < THREAD_SERIALIZED) {
    const message = "this Open MPI was built without threads (--enable-mpi-thread-multiple)";
    throw new OperationalError("parallel.mpi", message);
  }
  const returns = symbolOf(library, "ompi_mpi_errors_return");
  const world = symbolOf(library, "ompi_mpi_comm_world");
  check("MPI_Comm_set_errhandler", call.setErrorHandler(world, returns));
  return attachMpi();
}

/** MPI on another thread of a process that has initialised it. */
export function attachMpi(): MpiLibrary {
  const koffi = createRequire(import.meta.url)("koffi") as Koffi;
  const library = loadLibrary(koffi);
  const call = bindFunctions(library);
  const world = symbolOf(library, "ompi_mpi_comm_world");
  const byte = symbolOf(library, "ompi_mpi_byte");
  const word = new Int32Array(new SharedArrayBuffer(4));
  check("MPI_Comm_rank", call.rank(world, word));
  const rank = word[0]!;
  check("MPI_Comm_size", call.size(world, word));
  const size = word[0]!;
  return {
    rank,
    size,
    addressOf: (bytes) => Number(koffi.address(bytes)),
    isend: (handle, { address, byteLength, peer, tag }) => {
      check("MPI_Isend", call.isend(address, byteLength, byte, peer, tag, world, handle));
    },
    irecv: (handle, { address, byteLength, peer, tag }) => {
      check("MPI_Irecv", call.irecv(address, byteLength, byte, peer, tag, world, handle));
    },
    testSome: ({ handles, count, indices, statuses }, numRequests) => {
      const code = call.testSome(numRequests, handles, count, indices, statuses);
      if (code !== ERR_IN_STATUS) check("MPI_Testsome", code);
      return code === ERR_IN_STATUS;
    },
    finalize: () => check("MPI_Finalize", call.finalize()),
    abort: () => {
      call.abort(world, 1);
    },
  };
}

function bindFunctions(
  library: KoffiLibrary,
): Record<
  | "initThread"
  | "setErrorHandler"
  | "rank"
  | "size"
  | "isend"
  | "irecv"
  | "testSome"
  | "finalize"
  | "abort",
  NativeCall
> {
  const pointer = "void *";
  const handle = "uintptr_t";
  const message = [handle, "int", handle, "int", "int", handle, handle];
  const bind = (name: string, parameters: readonly string[]): NativeCall =>
    library.func(name, "int", parameters);
  return {
    initThread: bind("MPI_Init_thread", [pointer, pointer, "int", pointer]),
    setErrorHandler: bind("MPI_Comm_set_errhandler", [handle, handle]),
    rank: bind("MPI_Comm_rank", [handle, pointer]),
    size: bind("MPI_Comm_size", [handle, pointer]),
    isend: bind("MPI_Isend", message),
    irecv: bind("MPI_Irecv", message),
    testSome: bind("MPI_Testsome", ["int", handle, handle, handle, handle]),
    finalize: bind("MPI_Finalize", []),
    abort: bind("MPI_Abort", [handle, "int"]),
  };
}

function loadLibrary(koffi: Koffi): KoffiLibrary {
  const reasons: string[] = [];
  for (const name of NAMES) {
    try {
      // Open MPI's own plugins look for its symbols among the global ones.
      return koffi.load(name, { global: true });
    } catch (error) {
      reasons.push(error instanceof Error ? error.message : String(error));
    }
  }
  throw new OperationalError(
    "parallel.mpi",
    "no MPI library was found; install Open MPI (Debian: openmpi-bin libopenmpi3) or let the " +
      `dynamic linker find it (LD_LIBRARY_PATH). Tried: ${reasons.join("; ")}`,
  );
}

function symbolOf(library: KoffiLibrary, name: string): bigint {
  try {
    return library.symbol(name);
  } catch (cause) {
    const message = `the MPI library found is not Open MPI: it has no ${name}; install Open MPI`;
    throw new OperationalError("parallel.mpi", message, {}, cause);
  }
}

function check(name: string, code: number): void {
  if (code === 0) return;
  throw new OperationalError("parallel.mpi", `${name} failed with MPI's error code ${code}`);
}
