/**
 * @file How much of the exchange of experts' tokens an F&B pair leaves to wait for, over a link as
 * slow as two ranks compute.
 *
 *     node bin/node24.js bench/overlap.ts [RECIPE]        ranks on threads
 *     mpirun -np 2 node bin/node24.js bench/overlap.ts [RECIPE] mpi
 */
import process from "node:process";
import { type OverlapTimes, runRank } from "../src/cli/bench/parallel/overlap-ranks.ts";
import { runUnderMpi } from "../src/parallel/communicator/mpi/run-under-mpi.ts";
import { runOnThreads } from "../src/parallel/communicator/threads/run-on-threads.ts";

const [recipe = "bf16", where] = process.argv.slice(2);
const input = { preset: "small", recipe };
const program = new URL("../src/cli/bench/parallel/overlap-ranks.ts", import.meta.url);
let rank = 0;
const times =
  where === "mpi"
    ? await runUnderMpi((context) => {
        rank = context.rank;
        return runRank({ ...context, input });
      })
    : (await runOnThreads({ numRanks: 2, program, input }))[0];

if (rank === 0) {
  const { bytesPerPair, shape, ...rounds } = times as OverlapTimes;
  process.stdout.write(`${recipe}, ${shape}, ${bytesPerPair} bytes\n`);
  const { apart, pair, slowApart, slowPair } = rounds;
  for (const [round, alone] of apart.entries()) {
    const [together, slow, slowTogether] = [pair[round]!, slowApart[round]!, slowPair[round]!];
    const exposed = (slowTogether - together) / (slow - alone);
    const columns = [alone, slow, together, slowTogether].map((ms) => ms.toFixed(1).padStart(8));
    process.stdout.write(`${columns.join("")} ms  exposed ${(100 * exposed).toFixed(1)} %\n`);
  }
}
