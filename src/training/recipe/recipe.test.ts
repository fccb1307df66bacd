/**
 * @file The recipe is what the model executes: stored formats against the table, gradients against
 * the operands it names, memory against its arithmetic.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { OperationalError } from "../../base/errors.ts";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { dequantizeTiles } from "../../kernels/quantize-tiles/contract.ts";
import type { BlockSaved } from "../../model/block.ts";
import type { ModelConfig } from "../../model/config.ts";
import { Linear } from "../../model/linear.ts";
import { activationBytesPerToken, predictMemory } from "../../model/memory.ts";
import { Model } from "../../model/model.ts";
import {
  isScaled,
  type Operand,
  outputGradient,
  quantize,
  wgradInput,
} from "../../model/operand.ts";
import { isScalable } from "../../model/parameter-declarations.ts";
import type { Pass } from "../../model/pass.ts";
import type { PrecisionRecipe, TensorRule, TileName } from "../../model/precision-recipe.ts";
import { makePositions, makeRopeTables } from "../../model/rope.ts";
import { randomBatch, TINY } from "../../model/test-support.ts";
import { runForward } from "../../model/training-pass.ts";
import { difference } from "../../numerics/tolerance.ts";
import { elementCount, type Tensor } from "../../tensor/tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";
import { resolveSettings } from "../settings.ts";
import { recipeFrom } from "./recipe-settings.ts";
import { PRECISION_RECIPES, RECIPE_NAMES } from "./recipes.ts";
import { recipeTable } from "./table.ts";

const SEED = 4;
/**
 * ε²/2 of a relative error ε: one operand is off by 2.6% in the mean square, a product of two by
 * 3.7%, and one or two dozen products stand between the data and a gradient. A term that is missing
 * or of the wrong sign shows as 0.5 or more.
 */
const GRADIENT_DIFFERENCE_MAX = 0.08;
/** Of all gradients together, where a few tokens choose other experts than in f32. */
const VARIANT_DIFFERENCE_MAX = 0.15;
const OPTIONS = { mtpWeight: 0.3, balanceWeight: 1e-3, zLoss: 0, computeGradients: true };

/** Wide enough for ragged and for several tiles a row, deep enough for every kind of layer. */
const CONFIG: ModelConfig = {
  ...TINY,
  vocabSize: 64,
  hiddenDim: 144,
  numLayers: 2,
  qLoraRank: 24,
  kvLoraRank: 16,
  qkNopeHeadDim: 16,
  qkRopeHeadDim: 8,
  vHeadDim: 16,
  intermediateDim: 96,
  moeIntermediateDim: 72,
  numMtpModules: 1,
  initializerRange: 0.08,
};
const BATCH = randomBatch(CONFIG, { numSequences: 2, seqLength: 40, seed: SEED });

const openDevice = (): Promise<Device> => openCpuDevice({ numThreads: 1 });

function passOf(device: Device, model: Model): Pass {
  const { saved, scratch } = model.arenas;
  const { numSequences, seqLength } = BATCH;
  const tables = makeRopeTables(saved, model.config, seqLength, "f32");
  return {
    device,
    floatType: model.floatType,
    computeType: model.computeType,
    attention: model.attention,
    saved,
    scratch,
    weightGrads: model.weightGrads,
    numSequences,
    seqLength,
    positions: makePositions(saved, tables, { numSequences, seqLength }),
    balanceScale: 0,
  };
}

/** What a tensor is, in the words of the table. */
function storedAs(operand: Operand): { format: string; tile: TileName } {
  if (!isScaled(operand)) return { format: operand.dtype, tile: "none" };
  const { format, tileRows, tileColumns } = operand;
  return { format, tile: `${tileRows}x${tileColumns}` as TileName };
}

function assertStored(where: string, operand: Operand | null, rule: TensorRule): void {
  if (rule.held !== "cached") {
    assert.equal(operand, null, `${where} is ${rule.held}, so not saved`);
    return;
  }
  assert.ok(operand !== null, `${where} is saved`);
  assert.deepEqual(storedAs(operand), { format: rule.format, tile: rule.tile }, where);
  if (!isScaled(operand)) return;
  const isPower = (scale: number): boolean => Number.isInteger(Math.log2(scale));
  if (rule.scales === "powerOfTwo") assert.ok(view(operand.scales).every(isPower), where);
  else assert.ok(!view(operand.scales).every(isPower), `${where} has scales of any value`);
}

for (const name of RECIPE_NAMES) {
  const recipe = PRECISION_RECIPES[name];
  test(`what a forward pass saves under ${name} is what the table says`, async () => {
    await using device = await openDevice();
    const model = new Model(device, CONFIG, { precision: recipe, seed: SEED });
    const pass = passOf(device, model);
    const { trunk, modules } = runForward(model.layers, pass, BATCH);
    const blocks = [...trunk.blocks, ...modules.map(({ block }) => block)];
    assert.deepEqual(
      blocks.map(({ feedForward }) => feedForward.kind),
      ["dense", "moe", "moe"],
    );
    const { tensors } = recipe;
    for (const { attention, feedForward } of blocks) {
      assertStored("attention's input", attention.input, tensors.linearInput);
      assertStored("q", attention.expanded?.q ?? null, tensors.attentionInput);
      assertStored("kv", attention.expanded?.kv ?? null, tensors.attentionInput);
      assertStored("attention's output", attention.attended, tensors.attentionOutput);
      assertStored("[gate | up]", gateUpOf(feedForward), tensors.swigluInput);
      const use = feedForward.kind === "moe" ? "dispatch" : "linearInput";
      assertStored(`${feedForward.kind} input`, feedForward.state.input, tensors[use]);
    }
    for (const parameter of model.parameters.list) {
      const { scaled, compute, role, name: parameterName } = parameter;
      const isFp8 = name === "fp8" && isScalable(parameter);
      assert.equal(scaled !== null, isFp8, parameterName);
      if (scaled !== null) {
        const { tileRows, tileColumns, format } = scaled;
        assert.deepEqual([format, tileRows, tileColumns], ["e4m3", 128, 128], parameterName);
      } else if (role !== "norm" && role !== "embedding") {
        assert.equal(compute.dtype, name === "f32" ? "f32" : "bf16", parameterName);
      }
    }
  });

  test(`memory under ${name} is the table's arithmetic and at most 5% more`, async () => {
    await using device = await openDevice();
    const model = new Model(device, CONFIG, { precision: recipe, seed: SEED });
    model.forwardBackward(BATCH, OPTIONS);
    const numTokens = BATCH.numSequences * BATCH.seqLength;
    const perToken = recipeTable(CONFIG, recipe).reduce(
      (sum, { bytesPerToken }) => sum + (bytesPerToken ?? 0),
      0,
    );
    assert.ok(Math.abs(perToken - activationBytesPerToken(CONFIG, recipe)) < 1e-6);
    const measured = model.arenas.saved.peakBytes / numTokens;
    assert.ok(measured <= 1.05 * perToken, `${measured} bytes a token, the table has ${perToken}`);
    const predicted = predictMemory(CONFIG, recipe, numTokens);
    for (const arena of ["scratch", "weightGrads"] as const) {
      const error = model.arenas[arena].peakBytes / predicted[arena] - 1;
      assert.ok(Math.abs(error) < 0.15, `${arena}: off by ${error}`);
    }
  });
}

test("FP8 caches less than half of what bf16 does", () => {
  const [fp8, bf16] = [PRECISION_RECIPES.fp8, PRECISION_RECIPES.bf16].map((recipe) =>
    activationBytesPerToken(resolveSettings({ preset: "small" }).model, recipe),
  );
  assert.ok(fp8! < 0.55 * bf16!, `${fp8} and ${bf16} bytes a token`);
});

describe("gradients under fp8", () => {
  const values = (device: Device, model: Model, operand: Operand): Float64Array => {
    if (!isScaled(operand)) return Float64Array.from(view(operand as Tensor<"f32">));
    const out = model.arenas.saved.allocate("f32", [operand.rows, operand.columns]);
    dequantizeTiles(device, { x: operand, out });
    return Float64Array.from(view(out));
  };

  test("of a linear layer are those of the operands that the recipe stores", async () => {
    await using device = await openDevice();
    const model = new Model(device, CONFIG, { precision: PRECISION_RECIPES.fp8, seed: SEED });
    const pass = passOf(device, model);
    const recipe = PRECISION_RECIPES.fp8;
    const linear = new Linear(model.parameters.get("layers.0.feedForward.gateUp"));
    const [tokens, [outputs, inputs]] = [150, linear.weight.shape];
    const random = new Random(SEED, "linear");
    const normal = (columns: number): Tensor<"f32"> => {
      const tensor = pass.saved.allocate("f32", [tokens, columns]);
      fillFrom(
        tensor,
        Float32Array.from({ length: tokens * columns }, () => random.normal()),
      );
      return tensor;
    };
    const x = quantize(pass, pass.saved, normal(inputs), {
      rule: recipe.tensors.linearInput,
    });
    const dOut = outputGradient(pass, normal(outputs), recipe);
    const input = wgradInput(pass, x, recipe);
    const [out, dInput] = [normal(outputs), normal(inputs)];
    linear.forward(pass, x, out, "overwrite");
    linear.backward(pass, { input, dOut, dInput, mode: "overwrite" });
    const weight = values(device, model, linear.weight.scaled!);
    const open = (operand: Operand): Float64Array => values(device, model, operand);
    const [xs, dgrad, wgrad, xsOfWgrad] = [
      open(x),
      open(dOut.dgrad),
      open(dOut.wgrad),
      open(input),
    ];
    pass.weightGrads.run();
    const sum = (count: number, term: (index: number) => number): number =>
      Array.from({ length: count }, (_, index) => term(index)).reduce((total, t) => total + t, 0);
    const expectedOut = view(out).map((_, at) => {
      const [t, n] = [Math.floor(at / outputs), at % outputs];
      return sum(inputs, (k) => xs[t * inputs + k]! * weight[n * inputs + k]!);
    });
    const expectedDInput = view(dInput).map((_, at) => {
      const [t, k] = [Math.floor(at / inputs), at % inputs];
      return sum(outputs, (n) => dgrad[t * outputs + n]! * weight[n * inputs + k]!);
    });
    const gradient = view(linear.weight.gradient as Tensor<"f32">);
    const expectedGradient = gradient.map((_, at) => {
      const [n, k] = [Math.floor(at / inputs), at % inputs];
      return sum(tokens, (t) => wgrad[t * outputs + n]! * xsOfWgrad[t * inputs + k]!);
    });
    assert.ok(difference(view(out), expectedOut) < 1e-12, "out");
    assert.ok(difference(view(dInput), expectedDInput) < 1e-12, "dInput");
    assert.ok(difference(gradient, expectedGradient) < 1e-12, "gradient");
  });

  test("of the whole model are near those in f32, tensor by tensor", async () => {
    await using device = await openDevice();
    // Every expert is chosen: no rounding moves a token to another one.
    const config = { ...CONFIG, numExpertsPerToken: CONFIG.numRoutedExperts };
    const gradients = (precision: PrecisionRecipe): Map<string, Float32Array> => {
      const model = new Model(device, config, { precision, seed: SEED });
      model.forwardBackward(BATCH, OPTIONS);
      const { list } = model.parameters;
      return new Map(list.map(({ name, gradient }) => [name, Float32Array.from(view(gradient))]));
    };
    const exact = gradients(PRECISION_RECIPES.f32);
    for (const [name, gradient] of gradients(PRECISION_RECIPES.fp8)) {
      const gap = difference(gradient, exact.get(name)!);
      assert.ok(gap < GRADIENT_DIFFERENCE_MAX, `${name}: difference ${gap}`);
    }
  });
});

describe("a recipe from a file", () => {
  const refusedWith = (pattern: RegExp) => (error: unknown) =>
    error instanceof OperationalError && pattern.test(error.message);

  test("changes the recipe it is based on", () => {
    const recipe = recipeFrom(
      { name: "hybrid", tensors: { outputGradient: { format: "e5m2" } } },
      "hybrid.json",
    );
    assert.equal(recipe.tensors.outputGradient.format, "e5m2");
    assert.deepEqual(recipe.tensors.weight, PRECISION_RECIPES.fp8.tensors.weight);
  });

  test("is refused where the model could not execute it", () => {
    const from = (value: unknown): PrecisionRecipe => recipeFrom(value, "my.json");
    const refused: readonly (readonly [unknown, RegExp])[] = [
      ["fp4", /recipe "fp4" must be fp8, bf16, f32/],
      [
        { tensors: { weight: { tile: "1x128" } } },
        /tensors\.weight\.tile \(1x128\) must be 128x128/,
      ],
      [{ tensors: { wgradInput: { format: "bf16" } } }, /wgradInput\.format \(bf16\) must be e4m3/],
      [{ tensors: { weight: { scales: "none" } } }, /scales \(none\) must be f32 or powerOfTwo/],
      [{ promotionInterval: 96 }, /must divide 128/],
      [{ promotionInterval: 33 }, /must be a multiple of 32/],
      [{ base: "bf16", tensors: { linearInput: { format: "f32" } } }, /tensors\.linearInput is/],
      [
        { accumulation: "tensorCore", tensors: { outputGradient: { format: "e5m2" } } },
        /modelled for e4m3/,
      ],
      [{ tensors: { wieght: {} } }, /did you mean/],
    ];
    for (const [value, pattern] of refused) {
      assert.throws(() => from(value), refusedWith(pattern), String(pattern));
    }
  });

  test("is one of the settings, by name, in part, or as older files call it", () => {
    const recipeOf = (...assignments: string[]): PrecisionRecipe =>
      resolveSettings({ preset: "tiny", assignments }).recipe;
    assert.deepEqual(recipeOf("recipe=fp8"), PRECISION_RECIPES.fp8);
    assert.deepEqual(recipeOf("precision=f32"), PRECISION_RECIPES.f32);
    assert.equal(recipeOf("recipe=fp8", "recipe.promotionInterval=64").promotionInterval, 64);
  });
});

test("every tile, format and interval that is allowed trains", async () => {
  const variants: readonly object[] = [
    { tensors: { outputGradient: { format: "e5m2" }, wgradGradient: { format: "e5m2" } } },
    { tensors: { outputGradient: { tile: "128x128" }, dispatchGradient: { tile: "128x128" } } },
    { tensors: { linearInput: { tile: "row", held: "recomputed" }, dispatch: { tile: "tensor" } } },
    { tensors: { weight: { tile: "tensor" }, wgradInput: { tile: "column" } } },
    { tensors: { wgradGradient: { tile: "tensor" }, wgradInput: { tile: "128x128" } } },
    { tensors: { attentionInput: { held: "cached" }, dispatch: { held: "recomputed" } } },
    {
      tensors: {
        attentionOutput: { format: "bf16", tile: "none", scales: "none" },
        swigluInput: { format: "f32", tile: "none", scales: "none" },
      },
    },
    { promotionInterval: 32 },
    { promotionInterval: null },
    { accumulation: "tensorCore" },
  ];
  await using device = await openDevice();
  // Widths at which a gradient that was released too early would be overwritten while it is read.
  const config = { ...CONFIG, moeIntermediateDim: 104, numMtpModules: 0 };
  const batch = randomBatch(config, { numSequences: 1, seqLength: 24, seed: SEED });
  const exact = new Model(device, config, { precision: "f32", seed: SEED });
  const { loss } = exact.forwardBackward(batch, OPTIONS);
  const exactGradients = matrixGradients(exact);
  for (const changes of variants) {
    const recipe = recipeFrom(changes, "the variant");
    const model = new Model(device, config, { precision: recipe, seed: SEED });
    const result = model.forwardBackward(batch, OPTIONS);
    const why = JSON.stringify(changes);
    assert.ok(Math.abs(result.loss - loss) < 0.02 * loss, `${why}: ${result.loss}, not ${loss}`);
    for (const { gradient, name } of model.parameters.list) {
      assert.ok(view(gradient).every(Number.isFinite), `${why}: ${name}`);
      assert.ok(elementCount(gradient) > 0);
    }
    const gap = difference(matrixGradients(model), exactGradients);
    assert.ok(gap < VARIANT_DIFFERENCE_MAX, `${why}: gradients differ by ${gap}`);
  }
});

function matrixGradients({ parameters }: Model): number[] {
  return [parameters.decayed, parameters.experts].flatMap(({ gradients }) => [...view(gradients)]);
}

function gateUpOf(feedForward: BlockSaved["feedForward"]): Operand {
  if (feedForward.kind === "dense") return feedForward.state.gateUp;
  const { routed } = feedForward.state;
  assert.ok(routed.kind === "here");
  return routed.experts.gateUp;
}
