/** @file Ranks that take steps of a model over a pipeline and tell what came of each. */
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import type { ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import { view } from "../../tensor/view.ts";
import type { ModelConfig } from "../config.ts";
import type { Batch, StepOptions, StepResult } from "../model-types.ts";
import type { PrecisionRecipe } from "../precision-recipe.ts";
import { PipelineModel } from "./pipeline-model.ts";

export interface PipelineCase {
  readonly kind: ScheduleKind;
  readonly config: ModelConfig;
  readonly recipe: PrecisionRecipe;
  readonly seed: number;
  readonly batches: readonly Batch[];
  readonly options: StepOptions;
}

export interface RankOutcome {
  readonly results: readonly StepResult[];
  /** Of the parameters this rank moves. */
  readonly gradients: ReadonlyMap<string, Float32Array>;
  /** What a second step asked of the device. */
  readonly grownBytes: number;
}

/** Runs every case, each twice. */
export async function runRank(context: RankContext): Promise<RankOutcome[]> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  return (context.input as readonly PipelineCase[]).map(
    ({ kind, config, recipe, seed, batches, options }): RankOutcome => {
      const shape = { kind, numStagesPerRank: 2 };
      const model = new PipelineModel(device, world, config, { precision: recipe, seed, shape });
      model.forwardBackward(batches, options);
      const before = device.memory.reservedBytes;
      const { results } = model.forwardBackward(batches, options);
      const { list } = model.part.parameters.own;
      const gradients = list.map(
        ({ name, gradient }) => [name, Float32Array.from(view(gradient))] as const,
      );
      const grownBytes = device.memory.reservedBytes - before;
      return { results, gradients: new Map(gradients), grownBytes };
    },
  );
}
