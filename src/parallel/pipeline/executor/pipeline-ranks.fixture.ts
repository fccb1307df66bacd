/** @file Ranks that run a schedule over toy stages and tell what came of it. */
import { openCpuDevice } from "../../../kernels/cpu.ts";
import { makeTensor, type Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Communicator, Operation } from "../../communicator/communicator.ts";
import type { RankContext } from "../../communicator/rank-program.ts";
import type { Direction } from "../layout.ts";
import { makeSchedule, type ScheduleKind } from "../schedules/kinds.ts";
import type { TimedAction } from "../simulate.ts";
import { BoundaryPool } from "./boundary-pool.ts";
import { runSchedule } from "./run-schedule.ts";
import { COLUMNS, ROWS, ToyStage } from "./toy-stage.fixture.ts";

export interface PipelineInput {
  readonly kind: ScheduleKind;
  readonly numMicroBatches: number;
  readonly numStagesPerRank: number;
  /** Each piece of work sends this rank's neighbour in a mesh something on its way. */
  readonly communicates: boolean;
}

export interface PipelineReport {
  readonly losses: readonly (readonly [microBatch: number, loss: number])[];
  /** By stage; copies of a stage already added. */
  readonly gradients: readonly (readonly [stage: number, values: Float32Array])[];
  readonly timed: readonly TimedAction[];
}

export async function runRank(context: RankContext): Promise<PipelineReport> {
  // Under MPI input comes as text.
  const input = (
    typeof context.input === "string" ? JSON.parse(context.input) : context.input
  ) as PipelineInput;
  await using device = await openCpuDevice({ numThreads: 1 });
  const { memory } = device;
  const world = await context.join(memory);
  const schedule = makeSchedule(input.kind, { ...input, numRanks: world.size });
  const { layout } = schedule;
  const stages = new Map<string, ToyStage>();
  const stageFor = (stage: number, direction: Direction): ToyStage => {
    const key = `${stage} ${direction}`;
    const isLast = stage === layout.numStages - 1;
    const communicate = input.communicates ? () => aside(world, memory) : undefined;
    const made =
      stages.get(key) ??
      new ToyStage(device, {
        stage,
        isLast,
        ...(communicate === undefined ? {} : { communicate }),
      });
    stages.set(key, made);
    return made;
  };
  const now = (): number => performance.timeOrigin + performance.now();
  const boundaries = new BoundaryPool(memory, { dtype: "f32", shape: [ROWS, COLUMNS] });
  const timed = runSchedule({ schedule, communicator: world, stageFor, boundaries, now });
  const held = [...stages].toSorted(([a], [b]) => Number.parseInt(a, 10) - Number.parseInt(b, 10));
  if (layout.directions.length > 1)
    addCopies(
      world,
      held.map(([, { gradient }]) => gradient),
    );
  return {
    losses: held.flatMap(([, { losses }]) => [...losses]),
    gradients: held.map(([key, { gradient }]) => [
      Number.parseInt(key, 10),
      view(gradient).slice(),
    ]),
    timed,
  };
}

/** Ranks r and P−1−r hold the same two stages; each adds the other's gradients to its own. */
function addCopies(world: Communicator, gradients: readonly Tensor[]): void {
  const { rank, size } = world;
  const pair = world.split(Math.min(rank, size - 1 - rank), rank, "copies");
  for (const gradient of gradients) pair?.allReduce(gradient, gradient, "sum").wait();
}

/** Some communication of a stage beside the pipeline's: a message to itself. */
function aside(world: Communicator, memory: Parameters<RankContext["join"]>[0]): Operation {
  const byte = makeTensor(memory, "u8", [64], memory.reserve(64));
  return world.group(() => {
    world.send(byte, world.rank, 499);
    world.receive(makeTensor(memory, "u8", [64], memory.reserve(64)), world.rank, 499);
  });
}
