/**
 * @file A process of an MPI run in tests: runs the program and input named on its command line and
 * prints one line of JSON.
 */
import process from "node:process";
import type { RankProgram } from "../rank-program.ts";
import { runUnderMpi } from "./run-under-mpi.ts";

const [programUrl, input, watchdogMs] = process.argv.slice(2);
const { runRank } = (await import(programUrl!)) as RankProgram;
let rank = -1;
try {
  const value = await runUnderMpi(
    (context) => {
      rank = context.rank;
      return runRank(context);
    },
    { input, watchdogMs: Number(watchdogMs) },
  );
  process.stdout.write(`${JSON.stringify({ rank, value })}\n`);
} catch (error) {
  process.stdout.write(`${JSON.stringify({ rank, error: (error as Error).message })}\n`);
  process.exitCode = 1;
}
