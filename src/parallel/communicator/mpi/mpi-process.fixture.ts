/**
 * @file A process of an MPI run in tests: runs the program and input named on its command line and
 * writes what came of it to a file of its own (lines of several ranks would mix on one pipe).
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import type { RankProgram } from "../rank-program.ts";
import { runUnderMpi } from "./run-under-mpi.ts";

const [programUrl, input, watchdogMs, folder] = process.argv.slice(2);
const { runRank } = (await import(programUrl!)) as RankProgram;
let rank = -1;

function tell(end: object): void {
  writeFileSync(join(folder!, `${process.pid}.json`), JSON.stringify(end));
}

try {
  const value = await runUnderMpi(
    (context) => {
      rank = context.rank;
      return runRank(context);
    },
    { input, watchdogMs: Number(watchdogMs) },
  );
  tell({ rank, value });
} catch (error) {
  tell({ rank, error: (error as Error).message });
  process.exitCode = 1;
}
