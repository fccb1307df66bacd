/**
 * @file A model over the ranks of a pipeline gives losses and gradients of one process, bit for
 * bit: every schedule, dense and MoE layers, MTP modules, tied embeddings, every recipe.
 *
 * A bidirectional pipeline adds up the micro-batches of each direction by themselves, and so does
 * its reference. What the exit adds to the gradient of the embedding has a sum of its own on both
 * sides.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { OperationalError } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { runOnThreads } from "../../parallel/communicator/threads/run-on-threads.ts";
import type { DirectionLayout } from "../../parallel/pipeline/layout.ts";
import { makeSchedule, type ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { PRECISION_RECIPES, type RecipeName } from "../../training/recipe/recipes.ts";
import type { ModelConfig } from "../config.ts";
import { Embedding } from "../embedding.ts";
import { Head } from "../head.ts";
import { Model } from "../model.ts";
import type { StepOptions, StepResult } from "../model-types.ts";
import { declareParameters } from "../parameter-declarations.ts";
import { randomBatch, TINY } from "../test-support.ts";
import { exitReadsEmbedding, partitionModel } from "./model-part.ts";
import type { PipelineCase, RankOutcome } from "./pipeline-ranks.fixture.ts";

const PROGRAM = new URL("./pipeline-ranks.fixture.ts", import.meta.url);
const MODULE: ModelConfig = { ...TINY, numLayers: 4, numMtpModules: 1, initializerRange: 0.1 };
const TIED: ModelConfig = { ...MODULE, tieWordEmbeddings: true, numMtpModules: 2 };
const PLAIN: ModelConfig = { ...MODULE, numMtpModules: 0 };
/** Its embedding and its head cross in more pieces than are under way at once. */
const WIDE: ModelConfig = { ...MODULE, vocabSize: 30_001 };
const DENSE: ModelConfig = { ...PLAIN, numRoutedExperts: 0, tieWordEmbeddings: true };

type Row = readonly [kind: ScheduleKind, config: ModelConfig, recipe: RecipeName];
const ROWS: Readonly<Record<number, readonly Row[]>> = {
  1: [
    ["gpipe", MODULE, "f32"],
    ["dualpipev", TIED, "bf16"],
  ],
  2: [
    ["gpipe", DENSE, "f32"],
    ["1f1b", TIED, "fp8"],
    ["interleaved", MODULE, "bf16"],
    ["zb1p", PLAIN, "fp8"],
    ["dualpipe", MODULE, "fp8"],
    ["dualpipe", WIDE, "f32"],
    ["dualpipe", TIED, "f32"],
    ["dualpipe", PLAIN, "bf16"],
    ["dualpipev", MODULE, "f32"],
    ["dualpipev", DENSE, "fp8"],
  ],
  3: [
    ["1f1b", PLAIN, "f32"],
    ["zb1p", TIED, "bf16"],
  ],
  4: [
    ["gpipe", TIED, "fp8"],
    ["1f1b", MODULE, "f32"],
    ["zb1p", MODULE, "f32"],
    ["dualpipe", TIED, "bf16"],
    ["dualpipe", DENSE, "f32"],
  ],
};

let device: Device;
before(async () => {
  device = await openCpuDevice({ numThreads: 1 });
});
after(() => device[Symbol.asyncDispose]());

function caseOf([kind, config, recipe]: Row, numMicroBatches: number): PipelineCase {
  const options: StepOptions = {
    mtpWeight: 0.3,
    balanceWeight: 0.01,
    zLoss: 0.001,
    computeGradients: true,
    lossScale: 1 / numMicroBatches,
  };
  const batches = Array.from({ length: numMicroBatches }, (_, index) =>
    randomBatch(config, { numSequences: 2, seqLength: 7, seed: 100 + index }),
  );
  return { kind, config, recipe: PRECISION_RECIPES[recipe], seed: 5, batches, options };
}

type Gradients = ReadonlyMap<string, Float32Array>;

interface Alone {
  readonly results: readonly StepResult[];
  readonly gradients: Gradients;
  /** Of the embedding, by the exit. */
  readonly exit: Float32Array | null;
}

/** One process, the micro-batches of one direction. */
function runAlone(
  { config, recipe, seed, batches, options }: PipelineCase,
  { firstMicroBatch, endMicroBatch }: DirectionLayout,
): Alone {
  const model = new Model(device, config, { precision: recipe, seed });
  const exit = exitReadsEmbedding(config) ? separateExit(model) : null;
  const results = batches
    .slice(firstMicroBatch, endMicroBatch)
    .map((batch) => model.forwardBackward(batch, options));
  return { results, gradients: gradientsOf(model), exit: exit?.slice() ?? null };
}

function gradientsOf({ parameters }: Model): Gradients {
  return new Map(
    parameters.list.map(({ name, gradient }) => [name, Float32Array.from(view(gradient))]),
  );
}

/** Gives what the exit adds to the embedding's gradient memory of its own. */
function separateExit({ parameters, layers, config }: Model): Float32Array {
  const table = parameters.get("embedding");
  const arena = new Arena(device.memory, "test");
  const gradient = arena.allocateZeros("f32", table.shape);
  const exitTable = { ...table, gradient };
  if (config.tieWordEmbeddings) Object.assign(layers, { head: new Head(exitTable) });
  for (const module of layers.mtpModules) {
    Object.assign(module, { embedding: new Embedding(exitTable) });
  }
  return view(gradient);
}

function sum(...parts: readonly (Float32Array | null | undefined)[]): Float32Array {
  const given = parts.filter((part) => part !== null && part !== undefined);
  return given.reduce((total, part) => total.map((value, index) => value + part[index]!));
}

/** What the owners' gradients must be. */
function expectedGradients(alone: readonly Alone[]): Gradients {
  const [first, second] = alone as [Alone, Alone | undefined];
  return new Map(
    [...first.gradients].map(([name, gradient]) => {
      const other = second?.gradients.get(name);
      if (name !== "embedding") return [name, sum(gradient, other)];
      // In a bidirectional pipeline a rank has the look-ups of one direction and the exit of the
      // other.
      if (second === undefined) return [name, sum(gradient, first.exit)];
      return [name, sum(sum(gradient, second.exit), sum(other, first.exit))];
    }),
  );
}

function assertEqualToAlone(input: PipelineCase, outcomes: readonly RankOutcome[]): void {
  const size = { numRanks: outcomes.length, numStagesPerRank: 2 };
  const numMicroBatches = input.batches.length;
  const { layout } = makeSchedule(input.kind, { ...size, numMicroBatches });
  const alone = layout.directions.map((direction) => runAlone(input, direction));
  const expected = expectedGradients(alone);
  const seen = new Set<string>();
  for (const { results, gradients, grownBytes } of outcomes) {
    assert.deepEqual(
      results,
      alone.flatMap((part) => part.results),
    );
    for (const [name, gradient] of gradients) {
      assert.ok(!seen.has(name), `${name} has one owner`);
      seen.add(name);
      assert.deepEqual(gradient, expected.get(name), name);
    }
    // How many boundaries are under way at once is a matter of timing; arenas grow by megabytes.
    assert.ok(grownBytes < 2 ** 17, `a second step asked for ${grownBytes} bytes`);
  }
  assert.equal(seen.size, declareParameters(input.config).length);
}

for (const [ranks, rows] of Object.entries(ROWS)) {
  const numRanks = Number(ranks);
  test(`over ${numRanks} ranks losses and gradients are those of one process`, async () => {
    const cases = rows.map((row) => caseOf(row, 2 * numRanks + (numRanks === 1 ? 1 : 2)));
    const input = { numRanks, program: PROGRAM, input: cases };
    const outcomes = (await runOnThreads(input)) as RankOutcome[][];
    for (const [index, row] of cases.entries()) {
      assertEqualToAlone(
        row,
        outcomes.map((rank) => rank[index]!),
      );
    }
  });
}

test("a plain model's gradients agree too, up to the grouping of sums", () => {
  const input = caseOf(["gpipe", TIED, "f32"], 3);
  const whole = { direction: "forward", rankOfStage: [0], firstMicroBatch: 0 } as const;
  const { gradients, exit } = runAlone(input, { ...whole, endMicroBatch: 3 });
  const model = new Model(device, TIED, { precision: input.recipe, seed: input.seed });
  for (const batch of input.batches) model.forwardBackward(batch, input.options);
  const plain = view(model.parameters.get("embedding").gradient);
  for (const [index, value] of sum(gradients.get("embedding"), exit).entries()) {
    assert.ok(Math.abs(value - plain[index]!) < 1e-6, `element ${index}`);
  }
});

test("parts share the work evenly, and too many are refused", () => {
  const parts = partitionModel(MODULE, 3);
  assert.equal(parts[0]!.hasEmbedding && parts[2]!.hasExit, true);
  assert.deepEqual(
    parts.map(({ firstBlock, endBlock }) => [firstBlock, endBlock]),
    [
      [0, 2],
      [2, 4],
      [4, 4],
    ],
  );
  assert.throws(() => partitionModel(MODULE, 6), OperationalError);
});
