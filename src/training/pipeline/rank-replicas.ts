/**
 * @file The ranks of a mesh in an optimizer step.
 *
 * Along a pipeline each rank moves the parameters it owns, and gives them to the rank that has
 * copies. The replicas of a rank, one in each pipeline, share that by ZeRO-1 (zero.ts).
 */
import type { PipelineModel } from "../../model/pipeline/pipeline-model.ts";
import type { Mesh } from "../../parallel/mesh.ts";
import { view } from "../../tensor/view.ts";
import { alone, type Replicas } from "../data-parallel/replicas.ts";
import { ShardedReplicas, type ShardingOptions } from "../data-parallel/zero.ts";

export function rankReplicas(model: PipelineModel, mesh: Mesh, options: ShardingOptions): Replicas {
  const { own } = model.part.parameters;
  const inStage = mesh.replicas.size === 1 ? alone(own) : new ShardedReplicas(mesh, own, options);
  const { rank, size, inStep, part, expertParts } = inStage;
  return {
    rank,
    size,
    inStep,
    part,
    expertParts,
    countedPieces: () => inStage.countedPieces(),
    // The model has added up what two ranks hold: `PipelineModel.forwardBackward`.
    sumGradients: () => inStage.sumGradients(),
    gatherValues: () => {
      inStage.gatherValues();
      model.spreadValues();
    },
    sum: (values) => inStage.sum(values),
    sumParts: (values) => {
      using _mark = options.scratch.mark();
      const tensor = options.scratch.allocate("f64", [1, values.length]);
      view(tensor).set(inStage.sumParts(values));
      mesh.pp.allReduce(tensor, tensor, "sum").wait();
      return view(tensor).slice();
    },
    gatherState: (state) => inStage.gatherState(state),
    takeState: (whole, state) => inStage.takeState(whole, state),
    tick: () => mesh.world.tick(),
  };
}
