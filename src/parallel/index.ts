/**
 * @file `hadal/parallel`: ranks on threads and under MPI, pipeline schedules and their execution,
 * expert exchange and placement.
 */
export type { Communicator, Operation, Reduction } from "./communicator/communicator.ts";
export { type MpiRun, runUnderMpi } from "./communicator/mpi/run-under-mpi.ts";
export type { RankContext, RankProgram, RunRank } from "./communicator/rank-program.ts";
export { runOnThreads, type ThreadRun } from "./communicator/threads/run-on-threads.ts";
export { ExpertExchange } from "./expert/exchange/expert-exchange.ts";
export {
  gpuLoads,
  imbalance,
  type Placement,
  type PlacementShape,
  placeExperts,
} from "./expert/placement/place-experts.ts";
export { type MovePlan, planMoves } from "./expert/placement/plan-moves.ts";
export { type Mesh, type MeshShape, meshShape, openMesh } from "./mesh.ts";
export type { Action } from "./pipeline/action.ts";
export { BoundaryPool } from "./pipeline/executor/boundary-pool.ts";
export { type PipelineRun, runSchedule } from "./pipeline/executor/run-schedule.ts";
export type { Boundary, Stage, Work } from "./pipeline/executor/stage.ts";
export { formatCsv, formatText, parseSchedule } from "./pipeline/notation.ts";
export { makeSchedule, SCHEDULE_KINDS, type ScheduleKind } from "./pipeline/schedules/kinds.ts";
export type { Schedule } from "./pipeline/schedules/schedule.ts";
export { fixedCosts, simulate, type Timeline, UNIT_COSTS } from "./pipeline/simulate.ts";
export { formatTrace, parseTrace } from "./pipeline/trace.ts";
export { findScheduleFault } from "./pipeline/validate.ts";
