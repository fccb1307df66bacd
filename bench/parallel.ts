/**
 * @file Messages and collectives between two ranks, in microseconds and GB/s.
 *
 *     node bin/node24.js bench/parallel.ts            ranks on threads
 *     mpirun -np 2 node bin/node24.js bench/parallel.ts mpi      ranks under MPI
 *
 * GB/s counts a rank's payload, its own part included, as the tables of MPI benchmarks do.
 */
import process from "node:process";
import { runUnderMpi } from "../src/parallel/communicator/mpi/run-under-mpi.ts";
import { runOnThreads } from "../src/parallel/communicator/threads/run-on-threads.ts";
import { type Measured, runRank } from "./parallel-ranks.ts";

const isMpi = process.argv[2] === "mpi";
let rank = 0;
const measured = isMpi
  ? await runUnderMpi((context) => {
      rank = context.rank;
      return runRank(context);
    })
  : (
      await runOnThreads({ numRanks: 2, program: new URL("./parallel-ranks.ts", import.meta.url) })
    )[0];

if (rank === 0) {
  for (const { name, bytes, microseconds } of measured as readonly Measured[]) {
    const speed = (bytes / microseconds / 1000).toFixed(2);
    const line = [
      isMpi ? "mpi" : "threads",
      name.padEnd(16),
      String(bytes).padStart(9),
      microseconds.toFixed(1).padStart(10),
      speed.padStart(7),
    ];
    process.stdout.write(`${line.join("  ")}\n`);
  }
}
