/**
 * @file The body of a rank's thread: joins the others when its program asks, runs it, and tells how
 * it ended.
 */
import { type MessagePort, parentPort, workerData } from "node:worker_threads";
import { assert, defined } from "../../../base/errors.ts";
import type { CpuMemory } from "../../../device/cpu/memory.ts";
import type { Communicator } from "../communicator.ts";
import { worldOf } from "../member-communicator.ts";
import type { RankProgram } from "../rank-program.ts";
import { Signs } from "../signs.ts";
import { Rings } from "./rings.ts";
import { ThreadTransport } from "./thread-transport.ts";

/** What a rank is told when it starts. */
export interface RankStart {
  readonly rank: number;
  readonly size: number;
  readonly signs: SharedArrayBuffer;
  readonly rings: SharedArrayBuffer;
  readonly programUrl: string;
  readonly input: unknown;
  readonly port: MessagePort | undefined;
  readonly watchdogMs: number;
}

/** What a rank says to the thread that started it. */
export type RankReport =
  | { readonly kind: "memory"; readonly memory: WebAssembly.Memory }
  | { readonly kind: "result"; readonly value: unknown };

const start = workerData as RankStart;
const port = defined(parentPort, "parentPort");
const signs = new Signs(start.size, start.signs);
const rings = new Rings(start.size, start.rings);
let world: Communicator | null = null;

function report(message: RankReport): void {
  port.postMessage(message);
}

async function join(memory: CpuMemory): Promise<Communicator> {
  assert(world === null, "a rank joins once");
  const others = new Promise<readonly WebAssembly.Memory[]>((resolve) => {
    port.once("message", resolve);
  });
  report({ kind: "memory", memory: memory.wasm });
  const memories = await others;
  const { rank, watchdogMs } = start;
  const transport = new ThreadTransport({ signs, rings, rank, memory, memories, watchdogMs });
  world = worldOf(transport);
  return world;
}

try {
  const { runRank } = (await import(start.programUrl)) as RankProgram;
  const { rank, size, input, port: line } = start;
  const value = await runRank({ rank, size, input, port: line, join });
  // Nobody leaves while others may still want something of it.
  const joined = defined(world as Communicator | null, `the communicator of rank ${rank}`);
  joined.barrier().wait();
  report({ kind: "result", value });
} catch (error) {
  const reason = error instanceof Error ? error.message : String(error);
  signs.fail({ code: "parallel.rankFailed", message: `rank ${start.rank} failed: ${reason}` });
  throw error;
}
