/**
 * @file Which rank of a pipeline holds and moves which parameters.
 *
 * In a bidirectional pipeline every stage lives on two ranks, and the embedding may be read by the
 * first stage and by the last. Such parameters have one owner: it adds up their gradients, moves
 * them and gives the others the new values. Owners are chosen so that the work of the optimizer is
 * shared evenly. Everything follows from the configuration and the schedule, on every rank alike.
 */
import { defined } from "../../base/errors.ts";
import { makeSchedule, type ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import type { ModelConfig } from "../config.ts";
import { declareParameters, type ParameterDeclaration } from "../parameter-declarations.ts";
import { type ModelPart, partitionModel, partLayerIndices, partParameters } from "./model-part.ts";

export interface PipelineShape {
  readonly kind: ScheduleKind;
  readonly numRanks: number;
  /** Matters to the interleaved schedule alone. */
  readonly numStagesPerRank: number;
}

/** A parameter's ranks, in ascending order, and the one that moves it. */
export interface Holding {
  readonly holders: readonly number[];
  readonly owner: number;
}

export interface RankLayout {
  /** By rank: its parts, by the number of the stage. */
  readonly parts: readonly ReadonlyMap<number, ModelPart>[];
  /** By parameter, in the order of the forward pass. */
  readonly holdings: ReadonlyMap<string, Holding>;
}

export function layOutRanks(config: ModelConfig, shape: PipelineShape): RankLayout {
  // Where stages live does not depend on the number of micro-batches; every kind admits this one.
  const { layout } = makeSchedule(shape.kind, { ...shape, numMicroBatches: 2 * shape.numRanks });
  const stages = partitionModel(config, layout.numStages);
  const parts = Array.from({ length: shape.numRanks }, (_, rank) => {
    const held = stages.flatMap((part, stage) =>
      layout.directions.some(({ rankOfStage }) => rankOfStage[stage] === rank)
        ? [[stage, part] as const]
        : [],
    );
    return new Map(held);
  });
  const names = parts.map(
    (held) => new Set([...held.values()].flatMap((part) => [...partParameters(config, part)])),
  );
  return { parts, holdings: chooseOwners(config, names) };
}

/** Parameters that a rank holds and another one moves. */
export function copiesOn({ holdings }: RankLayout, rank: number): ReadonlySet<string> {
  const copies = [...holdings].filter(
    ([, { holders, owner }]) => owner !== rank && holders.includes(rank),
  );
  return new Set(copies.map(([name]) => name));
}

/** The ranks that have a layer, MTP modules counted behind the others. */
export function ranksOfLayer(
  config: ModelConfig,
  { parts }: RankLayout,
  layer: number,
): readonly number[] {
  return parts.flatMap((held, rank) => {
    const layers = [...held.values()].flatMap((part) => partLayerIndices(config, part));
    return layers.includes(layer) ? [rank] : [];
  });
}

/** The heaviest first, each to the holder that has the least to do. */
function chooseOwners(
  config: ModelConfig,
  names: readonly ReadonlySet<string>[],
): ReadonlyMap<string, Holding> {
  const declarations = declareParameters(config);
  const work = names.map(() => 0);
  const owners = new Map<string, number>();
  const holdersOf = (name: string): number[] =>
    names.flatMap((held, rank) => (held.has(name) ? [rank] : []));
  const heaviest = declarations.toSorted((a, b) => updateWork(config, b) - updateWork(config, a));
  // What one rank alone holds is decided, and counts before anything is chosen.
  for (const alone of [true, false]) {
    for (const declaration of heaviest) {
      const holders = holdersOf(declaration.name);
      if ((holders.length === 1) !== alone) continue;
      const owner = holders.reduce((best, rank) => (work[rank]! < work[best]! ? rank : best));
      owners.set(declaration.name, owner);
      work[owner]! += updateWork(config, declaration);
    }
  }
  return new Map(
    declarations.map(({ name }) => [
      name,
      { holders: holdersOf(name), owner: defined(owners.get(name), `the owner of ${name}`) },
    ]),
  );
}

/**
 * What an update takes, in operations an element: about as many as the shorter side where matrices
 * are orthogonalised, a few where they are not.
 */
function updateWork(config: ModelConfig, { role, shape }: ParameterDeclaration): number {
  const [rows, columns] = shape;
  if (role !== "matrix" && role !== "experts") return rows * columns * 4;
  const matrices = role === "experts" ? config.numRoutedExperts : 1;
  return rows * columns * Math.min(rows / matrices, columns);
}
