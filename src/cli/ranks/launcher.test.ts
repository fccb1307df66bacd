/** @file Launchers as their environment shows them; Slurm's is that of Slurm 22.05 with PMIx. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { launchedRanks, ranksOfThisHost } from "./launcher.ts";

const read = (env: Readonly<Record<string, string>>) => [launchedRanks(env), ranksOfThisHost(env)];

test("mpirun says how many ranks there are and how many are here", () => {
  assert.deepEqual(read({}), [undefined, undefined]);
  const both = { OMPI_COMM_WORLD_SIZE: "6", OMPI_COMM_WORLD_LOCAL_SIZE: "2" };
  assert.deepEqual(read(both), [6, 2]);
  // mpirun within a Slurm job.
  const within = { ...both, PMIX_RANK: "1", SLURM_STEP_NUM_TASKS: "3" };
  assert.deepEqual(read(within), [6, 2]);
});

test("srun says it of a step, and each host finds its own count", () => {
  const step = {
    PMIX_RANK: "0",
    SLURM_STEP_NUM_TASKS: "9",
    SLURM_STEP_TASKS_PER_NODE: "3(x2),2,1",
  };
  const counts = ["0", "1", "2", "3"].map((host) => read({ ...step, SLURM_NODEID: host }));
  assert.deepEqual(counts, [
    [9, 3],
    [9, 3],
    [9, 2],
    [9, 1],
  ]);
});

test("a batch script, and a step without MPI, are one process", () => {
  assert.equal(launchedRanks({ SLURM_NTASKS: "2", SLURM_PROCID: "0" }), undefined);
  assert.equal(launchedRanks({ SLURM_STEP_NUM_TASKS: "2", SLURM_PROCID: "1" }), undefined);
});
