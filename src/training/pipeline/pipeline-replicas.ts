/**
 * @file The ranks of a pipeline in an optimizer step: each moves the parameters it owns, and gives
 * them to the rank that has copies. All of them work on every micro-batch.
 */
import type { PipelineModel } from "../../model/pipeline/pipeline-model.ts";
import type { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { alone, type Replicas } from "../data-parallel/replicas.ts";

/** `scratch` is used within calls. */
export function pipelineReplicas(model: PipelineModel, scratch: Arena): Replicas {
  const { pipeline, part } = model;
  const { parameters } = part;
  return {
    ...alone(parameters.own),
    // The model has added up what two ranks hold: `PipelineModel.forwardBackward`.
    sumGradients: () => {},
    gatherValues: () => model.spreadValues(),
    sumParts: (values) => {
      using _mark = scratch.mark();
      const tensor = scratch.allocate("f64", [1, values.length]);
      view(tensor).set(values);
      pipeline.allReduce(tensor, tensor, "sum").wait();
      return view(tensor).slice();
    },
    tick: () => pipeline.tick(),
  };
}
