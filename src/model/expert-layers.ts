/** @file The layers that have routed experts here, with the parameters these are made of. */
import type { TrainableModel } from "./model-types.ts";
import { blockName } from "./parameter-declarations.ts";
import type { Parameter } from "./parameters.ts";

export interface ExpertLayer {
  /** MTP module k has index numLayers + k. */
  readonly layerIndex: number;
  readonly parameters: readonly Parameter[];
}

export type ExpertModel = Pick<TrainableModel, "config" | "moeLayerIndices" | "parameters">;

/** In the order of the forward pass; of some parameters of a model, those layers that have some. */
export function expertLayers({
  config,
  moeLayerIndices,
  parameters,
}: Pick<ExpertModel, "config" | "moeLayerIndices"> & {
  readonly parameters: { readonly list: readonly Parameter[] };
}): readonly ExpertLayer[] {
  return moeLayerIndices.flatMap((layerIndex) => {
    const prefix = `${blockName(config, layerIndex)}.moe.experts.`;
    const held = parameters.list.filter(({ name }) => name.startsWith(prefix));
    return held.length === 0 ? [] : [{ layerIndex, parameters: held }];
  });
}

/** Those of which this rank moves parameters, with these. */
export function ownExpertLayers({
  config,
  moeLayerIndices,
  parameters,
}: ExpertModel): readonly ExpertLayer[] {
  return expertLayers({ config, moeLayerIndices, parameters: parameters.own });
}
