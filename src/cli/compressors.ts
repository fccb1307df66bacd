/**
 * @file How small xz -9e and bzip2 -9 make some bytes: the yardsticks beside a model's bits per
 * byte.
 *
 * The system's own programs where there are any, else npm packages in a worker thread: `bzip2-wasm`
 * is libbzip2 and gives the same size to the byte; `lzma1` is another LZMA encoder and stays within
 * 2% of xz. `how` says which it was.
 */
import { spawn } from "node:child_process";
import { Worker } from "node:worker_threads";
import { OperationalError } from "../base/errors.ts";
import { siblingModule } from "../base/modules.ts";

/** Sizes in bytes; null where neither the program nor the package worked, and `how` says why. */
export interface CompressedBytes {
  readonly xz: number | null;
  readonly bzip2: number | null;
  readonly how: { readonly xz: string; readonly bzip2: string };
}

interface Compressor {
  readonly program: string;
  readonly args: readonly string[];
  /** The first bytes of its output: a stand-in under the same name may write something else. */
  readonly magic: readonly number[];
  readonly packageName: CompressorPackage;
}

/** The npm packages that `compressors-worker.ts` knows. */
export type CompressorPackage = "lzma1" | "bzip2-wasm";

const XZ: Compressor = {
  program: "xz",
  args: ["--format=xz", "-9e", "--threads=1", "--stdout"],
  magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a],
  packageName: "lzma1",
};
const BZIP2: Compressor = {
  program: "bzip2",
  args: ["-9", "--stdout"],
  magic: [0x42, 0x5a, 0x68],
  packageName: "bzip2-wasm",
};

/**
 * The sizes of `data` after xz -9e and bzip2 -9. `path` is where to look for the programs (PATH).
 */
export async function compressedBytes(
  data: Uint8Array,
  path: string | undefined = process.env["PATH"],
): Promise<CompressedBytes> {
  const [xz, bzip2] = await Promise.all([measure(XZ, data, path), measure(BZIP2, data, path)]);
  return { xz: xz.bytes, bzip2: bzip2.bytes, how: { xz: xz.how, bzip2: bzip2.how } };
}

async function measure(
  compressor: Compressor,
  data: Uint8Array,
  path: string | undefined,
): Promise<{ readonly bytes: number | null; readonly how: string }> {
  const { program, args, packageName } = compressor;
  const byProgram = await programBytes(compressor, data, path);
  if (byProgram !== null) return { bytes: byProgram, how: `${program} ${args.join(" ")}` };
  try {
    const bytes = await packageBytes(packageName, data);
    return { bytes, how: `the npm package ${packageName}, as there is no ${program} program` };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    return { bytes: null, how: `no ${program} program, and ${packageName} failed: ${reason}` };
  }
}

/** The length of the program's output, or null where it cannot be had. */
function programBytes(
  { program, args, magic }: Compressor,
  data: Uint8Array,
  path: string | undefined,
): Promise<number | null> {
  return new Promise((resolve) => {
    // PATH alone: XZ_OPT and BZIP2 would change the measure.
    const env = path === undefined ? {} : { PATH: path };
    const child = spawn(program, args, { env, stdio: ["pipe", "pipe", "ignore"] });
    let bytes = 0;
    let first = Buffer.alloc(0);
    child.stdout.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
      if (first.length < magic.length) first = Buffer.concat([first, chunk]);
    });
    child.on("error", () => resolve(null));
    child.on("close", (code) => {
      const genuine = magic.every((byte, index) => first[index] === byte);
      resolve(code === 0 && genuine ? bytes : null);
    });
    // A program that stops reading closes the pipe; its exit code tells the rest.
    child.stdin.on("error", () => undefined);
    child.stdin.end(data);
  });
}

/**
 * The length of the package's output; in a worker, because both block and `bzip2-wasm` sets
 * globals.
 */
function packageBytes(packageName: CompressorPackage, data: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(siblingModule("./compressors-worker", import.meta.url), {
      workerData: { packageName, data },
    });
    worker.once("message", resolve);
    worker.once("error", reject);
    worker.once("exit", (code) => {
      reject(new OperationalError("platform.worker", `its worker ended with code ${code}`));
    });
  });
}
