/**
 * @file Every parameter and buffer of a model as data: name, shape and role, from the configuration
 * alone.
 *
 * Nothing is allocated, so the 671 billion parameters of DeepSeek-V3 can be counted here. Matrices
 * are [out, in], as `nt` products take them. Fused and stacked matrices: gateUp is [gate rows; up
 * rows]; the experts of a layer stand one after another, so that one grouped product runs them all.
 * names.ts takes them apart again for checkpoints.
 */
import { countLayers, isMoeLayer, type ModelConfig } from "./config.ts";

export type ParameterRole = "embedding" | "head" | "norm" | "matrix" | "experts" | "gate";

export interface ParameterDeclaration {
  readonly name: string;
  readonly shape: readonly [rows: number, columns: number];
  readonly role: ParameterRole;
}

/**
 * Whether the products of this parameter read FP8 under a scaled recipe: all linear layers and
 * experts but the projections of MTP modules, which released checkpoints do not quantise either.
 */
export function isScalable({ name, role }: Pick<ParameterDeclaration, "name" | "role">): boolean {
  return role === "experts" || (role === "matrix" && !name.endsWith(".projection"));
}

/** State that no gradient moves: the routing biases. */
export interface BufferDeclaration {
  readonly name: string;
  readonly layerIndex: number;
  readonly numElements: number;
}

/** All parameters of the main model and the MTP modules, in the order of the forward pass. */
export function declareParameters(config: ModelConfig): readonly ParameterDeclaration[] {
  const { vocabSize, hiddenDim, numLayers } = config;
  const declarations: ParameterDeclaration[] = [
    { name: "embedding", shape: [vocabSize, hiddenDim], role: "embedding" },
  ];
  for (let layerIndex = 0; layerIndex < numLayers; layerIndex++) {
    declarations.push(...declareBlock(config, layerIndex));
  }
  declarations.push(norm("norm", hiddenDim));
  if (!config.tieWordEmbeddings) {
    declarations.push({ name: "head", shape: [vocabSize, hiddenDim], role: "head" });
  }
  for (let module = 0; module < config.numMtpModules; module++) {
    declarations.push(
      norm(`mtp.${module}.embeddingNorm`, hiddenDim),
      norm(`mtp.${module}.hiddenNorm`, hiddenDim),
      matrix(`mtp.${module}.projection`, hiddenDim, 2 * hiddenDim),
      ...declareBlock(config, numLayers + module),
      norm(`mtp.${module}.outputNorm`, hiddenDim),
    );
  }
  return declarations;
}

/** The routing biases: one a MoE layer where the choice is biased. */
export function declareBuffers(config: ModelConfig): readonly BufferDeclaration[] {
  if (config.topkMethod !== "noaux_tc") return [];
  return Array.from({ length: countLayers(config) }, (_, layerIndex) => layerIndex)
    .filter((layerIndex) => isMoeLayer(config, layerIndex))
    .map((layerIndex) => ({
      name: `${blockName(config, layerIndex)}.moe.gateBias`,
      layerIndex,
      numElements: config.numRoutedExperts,
    }));
}

/** "layers.3", or "mtp.0.block" for the layers beyond the main model's. */
export function blockName(config: ModelConfig, layerIndex: number): string {
  const module = layerIndex - config.numLayers;
  return module < 0 ? `layers.${layerIndex}` : `mtp.${module}.block`;
}

/** The parameters of one transformer block. */
export function declareBlock(
  config: ModelConfig,
  layerIndex: number,
): readonly ParameterDeclaration[] {
  const prefix = blockName(config, layerIndex);
  return [
    norm(`${prefix}.attentionNorm`, config.hiddenDim),
    ...declareAttention(config, `${prefix}.attention`),
    norm(`${prefix}.feedForwardNorm`, config.hiddenDim),
    ...(isMoeLayer(config, layerIndex)
      ? declareMoe(config, `${prefix}.moe`)
      : declareFeedForward(config, `${prefix}.feedForward`, config.intermediateDim)),
  ];
}

function declareAttention(config: ModelConfig, prefix: string): ParameterDeclaration[] {
  const { hiddenDim, numHeads, qLoraRank, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim } = config;
  const queryDim = numHeads * (qkNopeHeadDim + qkRopeHeadDim);
  const query =
    qLoraRank === null
      ? [matrix(`${prefix}.query`, queryDim, hiddenDim)]
      : [
          matrix(`${prefix}.queryDown`, qLoraRank, hiddenDim),
          norm(`${prefix}.queryNorm`, qLoraRank),
          matrix(`${prefix}.queryUp`, queryDim, qLoraRank),
        ];
  return [
    ...query,
    matrix(`${prefix}.keyValueDown`, kvLoraRank + qkRopeHeadDim, hiddenDim),
    norm(`${prefix}.latentNorm`, kvLoraRank),
    matrix(`${prefix}.keyValueUp`, numHeads * (qkNopeHeadDim + config.vHeadDim), kvLoraRank),
    matrix(`${prefix}.output`, hiddenDim, numHeads * config.vHeadDim),
  ];
}

function declareFeedForward(
  config: ModelConfig,
  prefix: string,
  width: number,
): ParameterDeclaration[] {
  return [
    matrix(`${prefix}.gateUp`, 2 * width, config.hiddenDim),
    matrix(`${prefix}.down`, config.hiddenDim, width),
  ];
}

function declareMoe(config: ModelConfig, prefix: string): ParameterDeclaration[] {
  const { hiddenDim, numRoutedExperts, moeIntermediateDim, numSharedExperts } = config;
  const sharedWidth = numSharedExperts * moeIntermediateDim;
  return [
    { name: `${prefix}.gate`, shape: [numRoutedExperts, hiddenDim], role: "gate" },
    {
      name: `${prefix}.experts.gateUp`,
      shape: [numRoutedExperts * 2 * moeIntermediateDim, hiddenDim],
      role: "experts",
    },
    {
      name: `${prefix}.experts.down`,
      shape: [numRoutedExperts * hiddenDim, moeIntermediateDim],
      role: "experts",
    },
    ...(sharedWidth === 0
      ? []
      : declareFeedForward(config, `${prefix}.sharedExperts`, sharedWidth)),
  ];
}

function norm(name: string, width: number): ParameterDeclaration {
  return { name, shape: [1, width], role: "norm" };
}

function matrix(name: string, rows: number, columns: number): ParameterDeclaration {
  return { name, shape: [rows, columns], role: "matrix" };
}
