/**
 * @file What the launcher of this process says about its ranks, in the environment.
 *
 *     mpirun              OMPI_COMM_WORLD_SIZE, OMPI_COMM_WORLD_LOCAL_SIZE
 *     srun --mpi=pmix     SLURM_STEP_NUM_TASKS, SLURM_STEP_TASKS_PER_NODE as in 4(x2),3
 *
 * Slurm sets variables of its own in a batch script too, where no rank runs: a rank is what PMIx,
 * by which Open MPI finds the others, has given a number.
 */
import type { Context } from "../verb.ts";

type Environment = Context["env"];

/** How many ranks the launcher of this process has started; undefined without one. */
export function launchedRanks(env: Environment): number | undefined {
  const size = Number(env["OMPI_COMM_WORLD_SIZE"] ?? slurmRanks(env) ?? 0);
  return Number.isInteger(size) && size > 0 ? size : undefined;
}

/** How many of them are on this machine; undefined without a launcher. */
export function ranksOfThisHost(env: Environment): number | undefined {
  if (launchedRanks(env) === undefined) return undefined;
  const local = env["OMPI_COMM_WORLD_LOCAL_SIZE"] ?? slurmRanksOfThisHost(env);
  return Math.max(1, Number(local ?? 1));
}

function slurmRanks(env: Environment): string | undefined {
  return env["PMIX_RANK"] === undefined ? undefined : env["SLURM_STEP_NUM_TASKS"];
}

/** Hosts of a step are numbered; equal counts of neighbours are written once. */
function slurmRanksOfThisHost(env: Environment): number | undefined {
  const counts = (env["SLURM_STEP_TASKS_PER_NODE"] ?? "").split(",").flatMap((part) => {
    const [, count, times] = part.match(/^(\d+)(?:\(x(\d+)\))?$/) ?? [];
    return count === undefined ? [] : new Array<number>(Number(times ?? 1)).fill(Number(count));
  });
  return counts[Number(env["SLURM_NODEID"] ?? 0)];
}
