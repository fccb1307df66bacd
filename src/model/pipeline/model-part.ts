/**
 * @file Which layers a pipeline stage has: a model cut into parts of about equal work.
 *
 * The first part has the embedding, the last the exit: final norm, head and MTP modules. Work is
 * counted in parameters that a token's products touch; the exit alone may be a part, a part without
 * an exit has at least one block. The modules look tokens up too, and a tied head reads the
 * embedding, so the last part then has a copy of the embedding.
 */
import { OperationalError } from "../../base/errors.ts";
import { isMoeLayer, type ModelConfig } from "../config.ts";
import { declareBlock, declareParameters } from "../parameter-declarations.ts";

export interface ModelPart {
  readonly hasEmbedding: boolean;
  /** Blocks of the main model, [first, end). */
  readonly firstBlock: number;
  readonly endBlock: number;
  readonly hasExit: boolean;
}

/** The parts of a model in `numStages` stages, the largest as small as it can be. */
export function partitionModel(config: ModelConfig, numStages: number): readonly ModelPart[] {
  const { numLayers } = config;
  if (numStages > numLayers + 1) {
    throw new OperationalError(
      "parallel.stages",
      `a model of ${numLayers} layers has at most ${numLayers + 1} stages, not ${numStages}; ` +
        "take fewer ranks or a schedule with fewer stages a rank",
      { numLayers, numStages },
    );
  }
  const work = Array.from({ length: numLayers }, (_, layer) => blockWork(config, layer));
  const ends = splitEvenly(work, exitWork(config), numStages);
  return ends.map((endBlock, stage) => ({
    hasEmbedding: stage === 0,
    firstBlock: stage === 0 ? 0 : ends[stage - 1]!,
    endBlock,
    hasExit: stage === numStages - 1,
  }));
}

/** Names of the parameters that a part reads. */
export function partParameters(config: ModelConfig, part: ModelPart): ReadonlySet<string> {
  const blocks = Array.from({ length: part.endBlock - part.firstBlock }, (_, index) =>
    declareBlock(config, part.firstBlock + index),
  ).flat();
  const names = new Set(blocks.map(({ name }) => name));
  if (part.hasEmbedding || (part.hasExit && exitReadsEmbedding(config))) names.add("embedding");
  if (!part.hasExit) return names;
  for (const { name } of declareParameters(config)) {
    if (name === "norm" || name === "head" || name.startsWith("mtp.")) names.add(name);
  }
  return names;
}

/** Whether the last part needs the embedding. */
export function exitReadsEmbedding(config: ModelConfig): boolean {
  return config.tieWordEmbeddings || config.numMtpModules > 0;
}

/** Indexes of the layers of a part, MTP modules last. */
export function partLayerIndices(config: ModelConfig, part: ModelPart): readonly number[] {
  const { firstBlock, endBlock, hasExit } = part;
  const numModules = hasExit ? config.numMtpModules : 0;
  return [
    ...Array.from({ length: endBlock - firstBlock }, (_, index) => firstBlock + index),
    ...Array.from({ length: numModules }, (_, module) => config.numLayers + module),
  ];
}

function blockWork(config: ModelConfig, layerIndex: number): number {
  const { numRoutedExperts, numExpertsPerToken } = config;
  const share = isMoeLayer(config, layerIndex) ? numExpertsPerToken / numRoutedExperts : 1;
  return declareBlock(config, layerIndex).reduce(
    (sum, { shape, role }) => sum + shape[0] * shape[1] * (role === "experts" ? share : 1),
    0,
  );
}

function exitWork(config: ModelConfig): number {
  const { hiddenDim, vocabSize, numLayers, numMtpModules } = config;
  const head = hiddenDim * vocabSize;
  return Array.from({ length: numMtpModules }, (_, module) => module).reduce(
    (sum, module) => sum + head + 2 * hiddenDim ** 2 + blockWork(config, numLayers + module),
    head,
  );
}

/**
 * Where each stage's blocks end. best[s][n]: the least possible work of the busiest of s stages
 * that share the first n blocks.
 */
function splitEvenly(work: readonly number[], exit: number, numStages: number): readonly number[] {
  const { length } = work;
  const between = (from: number, to: number): number =>
    work.slice(from, to).reduce((sum, value) => sum + value, 0);
  const best = [Array.from({ length: length + 1 }, (_, n) => (n === 0 ? 0 : Infinity))];
  const choice: number[][] = [[]];
  for (let stage = 1; stage <= numStages; stage++) {
    const isLast = stage === numStages;
    const fewest = isLast ? 0 : 1;
    const row: number[] = [];
    const from: number[] = [];
    for (let end = 0; end <= length; end++) {
      let [least, at] = [Infinity, 0];
      for (let start = 0; start <= end - fewest; start++) {
        const own = between(start, end) + (isLast ? exit : 0);
        const busiest = Math.max(best[stage - 1]![start]!, own);
        if (busiest < least) [least, at] = [busiest, start];
      }
      row.push(least);
      from.push(at);
    }
    best.push(row);
    choice.push(from);
  }
  const ends = [length];
  for (let stage = numStages; stage > 1; stage--) ends.unshift(choice[stage]![ends[0]!]!);
  return ends;
}
