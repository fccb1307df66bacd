/**
 * @file All-to-all under MPI beside the same exchange in C (bench/peers/all_to_all.c), in turns.
 *
 *     node bin/node24.js bench/all-to-all.ts [RANKS]
 *
 * Builds the peer, so mpicc has to be there (Debian: libopenmpi-dev gcc). Each round starts both
 * once for every length; a length's number is the least of its batches' means over all rounds, for
 * whatever else the machine does only adds. Ours counts issuing, waiting and the ways to the
 * communication thread and back.
 */
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { OperationalError } from "../src/base/errors.ts";
import { CpuMemory } from "../src/device/cpu/memory.ts";
import { runUnderMpi } from "../src/parallel/communicator/mpi/run-under-mpi.ts";
import type { RankContext } from "../src/parallel/communicator/rank-program.ts";
import { makeTensor } from "../src/tensor/tensor.ts";

const ROUNDS = 5;
const BATCHES = 9;
/** A rank's payload, its own part included, and how often it is exchanged in a batch. */
const LENGTHS = [
  { bytes: 2 ** 12, iterations: 500 },
  { bytes: 2 ** 16, iterations: 300 },
  { bytes: 2 ** 20, iterations: 60 },
  { bytes: 2 ** 24, iterations: 6 },
  { bytes: 2 ** 26, iterations: 3 },
] as const;

const words = process.argv.slice(2);
if (words[0] === "rank") await runUnderMpi((context) => exchange(context, words.slice(1)));
else compare(Number(words[0] ?? 2));

/** Our side: what the peer does, and prints. */
async function exchange(context: RankContext, numbers: readonly string[]): Promise<void> {
  const [bytes, iterations, batches] = numbers.map(Number) as [number, number, number];
  const memory = CpuMemory.create(null);
  const world = await context.join(memory);
  const make = () => makeTensor(memory, "u8", [bytes], memory.reserve(bytes));
  const [source, target] = [make(), make()];
  const part = bytes / world.size;
  const { u8 } = memory;
  u8.fill(world.rank + 1, source.byteOffset, source.byteOffset + bytes);
  const counts = Array.from({ length: world.size }, () => part);
  const call = { source, sendCounts: counts, target, receiveCounts: counts };
  for (let batch = -1; batch < batches; batch++) {
    world.barrier().wait();
    const start = performance.now();
    for (let index = 0; index < iterations; index++) world.allToAll(call).wait();
    const microseconds = (1000 * (performance.now() - start)) / iterations;
    // The first batch touches memory.
    if (world.rank === 0 && batch >= 0) process.stdout.write(`${microseconds.toFixed(3)}\n`);
  }
  for (let peer = 0; peer < world.size; peer++) {
    if (u8[target.byteOffset + part * (peer + 1) - 1] === peer + 1) continue;
    throw new OperationalError("parallel.mismatch", `other bytes than rank ${peer} sent`);
  }
}

function compare(numRanks: number): void {
  const folder = mkdtempSync(join(tmpdir(), "hadal-all-to-all-"));
  try {
    const peer = join(folder, "all_to_all");
    run([fileURLToPath(new URL("./peers/build_all_to_all.sh", import.meta.url)), peer]);
    const ours = [process.execPath, fileURLToPath(import.meta.url), "rank"];
    process.stdout.write("| bytes | C | ours | times C |\n|--:|--:|--:|--:|\n");
    for (const { bytes, iterations } of LENGTHS) {
      const least = { peer: Number.POSITIVE_INFINITY, ours: Number.POSITIVE_INFINITY };
      for (let round = 0; round < ROUNDS; round++) {
        for (const [name, command] of [["peer", [peer]] as const, ["ours", ours] as const]) {
          const numbers = [bytes, iterations, BATCHES].map(String);
          least[name] = Math.min(least[name], ...times(numRanks, [...command, ...numbers]));
        }
      }
      const cells = [least.peer, least.ours].map((us) => `${us.toFixed(1)} µs`);
      const ratio = (least.ours / least.peer).toFixed(2);
      process.stdout.write(`| ${bytes} | ${cells.join(" | ")} | ${ratio} |\n`);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function times(numRanks: number, command: readonly string[]): number[] {
  const asRoot = process.getuid?.() === 0 ? ["--allow-run-as-root"] : [];
  const options = ["--oversubscribe", "--bind-to", "none", "-np", String(numRanks)];
  return run(["mpirun", ...asRoot, ...options, ...command])
    .trim()
    .split("\n")
    .map(Number);
}

function run(command: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command[0]!, command.slice(1), {
    encoding: "utf8",
  });
  if (status === 0) return stdout;
  const message = `${command.join(" ")} failed: ${error?.message ?? stderr}`;
  throw new OperationalError("parallel.peer", message);
}
