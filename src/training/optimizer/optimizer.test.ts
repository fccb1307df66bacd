/** @file The optimizers against their formulas, on the reference kernels. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { smallModel } from "../../../test/fixtures/small-run.ts";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import { SPAN_NAMES } from "../../model/parameter-layout.ts";
import { type Parameter, ParameterSet } from "../../model/parameters.ts";
import { plainRecipe } from "../../model/precision-recipe.ts";
import { fromBf16, toBf16 } from "../../numerics/bf16.ts";
import { Arena } from "../../tensor/arena.ts";
import { sliceRows, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { stateSlice, wholeOf } from "../spans.ts";
import { AdamW, type MomentFormat } from "./adamw.ts";
import { clipScale, normOf, squaresOf } from "./clip.ts";
import { isOrthogonalized, Muon, matricesIn } from "./muon.ts";
import { orthogonalize } from "./newton-schulz.ts";
import type { Optimizer } from "./optimizer.ts";

const SEED = 3;
const ADAMW = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 };
let device: Device;

before(async () => {
  device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
});
after(() => device[Symbol.asyncDispose]());

function makeModel(): { arena: Arena; config: ModelConfig; parameters: ParameterSet } {
  const arena = new Arena(device.memory, "test");
  const config = smallModel();
  const parameters = new ParameterSet(device, arena, config, {
    recipe: plainRecipe("f32"),
    gradients: true,
  });
  parameters.initialize(SEED, 0.05);
  return { arena, config, parameters };
}

function fillGradients(parameters: ParameterSet, random: Random, std: number): void {
  for (const { gradient } of parameters.list) {
    const values = view(gradient);
    for (let index = 0; index < values.length; index++) values[index] = std * random.normal();
  }
}

test("AdamW follows the published formula over several steps, without decay on norm gains", () => {
  const { arena, parameters } = makeModel();
  const optimizer = new AdamW(device, arena, wholeOf(parameters), ADAMW);
  const random = new Random(SEED, "gradients");
  for (const name of ["norm", "layers.1.moe.gate"]) {
    const parameter = parameters.get(name);
    const expected = [...view(parameter.value)];
    const moments = expected.map(() => ({ first: 0, second: 0 }));
    const decay = parameter.role === "norm" ? 0 : ADAMW.weightDecay;
    for (let step = 1; step <= 4; step++) {
      const optimizerStep = step + (name === "norm" ? 0 : 4);
      fillGradients(parameters, random, 0.1);
      const gradients = view(parameter.gradient);
      for (const [index, moment] of moments.entries()) {
        const gradient = gradients[index]! * 0.5;
        moment.first = 0.9 * moment.first + 0.1 * gradient;
        moment.second = 0.95 * moment.second + 0.05 * gradient ** 2;
        const first = moment.first / (1 - 0.9 ** optimizerStep);
        const second = moment.second / (1 - 0.95 ** optimizerStep);
        const held = expected[index]!;
        expected[index] = held - 0.01 * (first / (Math.sqrt(second) + 1e-8) + decay * held);
      }
      if (name !== "norm" && step === 1) resetMoments(optimizer, parameters, parameter);
      optimizer.update({ learningRate: 0.01, gradientScale: 0.5, step: optimizerStep });
    }
    assertClose([...view(parameter.value)], expected, 1e-6, name);
  }
});

test("bf16 moments are rounded to nearest when they are stored", () => {
  const { arena, parameters } = makeModel();
  const optimizer = new AdamW(device, arena, wholeOf(parameters), ADAMW, {
    format: "bf16",
    seed: 1,
  });
  fillGradients(parameters, new Random(SEED, "gradients"), 0.1);
  const parameter = parameters.get("head");
  const [first, second] = optimizer.state.map((state) =>
    stateSlice(parameters, parameter, state),
  ) as [Tensor, Tensor];
  optimizer.update({ learningRate: 0.01, gradientScale: 1, step: 1 });
  const gradients = view(parameter.gradient);
  for (const [index, gradient] of gradients.entries()) {
    assert.equal(view(first)[index], toBf16(Math.fround(0.1) * gradient), `first ${index}`);
    const square = fromBf16(view(second)[index]!);
    assert.ok(Math.abs(square / (0.05 * gradient ** 2) - 1) <= 2 ** -8, `second ${index}`);
  }
});

test("stochastic moments keep what nearest rounding loses, and repeat bit for bit", () => {
  const start = 1;
  const steps = 200;
  const firstAfter = (format: MomentFormat): Uint16Array => {
    const { arena, parameters } = makeModel();
    const settings = { ...ADAMW, beta1: 0.999 };
    const optimizer = new AdamW(device, arena, wholeOf(parameters), settings, {
      format,
      seed: SEED,
    });
    const state = optimizer.state[0]!;
    view(state.decayed as Tensor<"bf16">).fill(toBf16(start));
    view(parameters.decayed.gradients).fill(0.5);
    for (let step = 1; step <= steps; step++) {
      optimizer.update({ learningRate: 0, gradientScale: 1, step });
    }
    return view(state.decayed as Tensor<"bf16">).slice();
  };
  const mean = (codes: Uint16Array): number =>
    codes.reduce((sum, code) => sum + fromBf16(code), 0) / codes.length;
  // A step moves it by 0.0005, an eighth of bf16's place below 1.
  const exact = 0.5 + 0.5 * 0.999 ** steps;
  assert.equal(mean(firstAfter("bf16")), start, "nearest rounding stands still");
  const stochastic = firstAfter("bf16.stochastic");
  assert.ok(Math.abs(mean(stochastic) - exact) < 2e-3, `${mean(stochastic)}, exactly ${exact}`);
  assert.deepEqual(firstAfter("bf16.stochastic"), stochastic);
});

function resetMoments(optimizer: Optimizer, parameters: ParameterSet, parameter: Parameter): void {
  for (const state of optimizer.state) view(stateSlice(parameters, parameter, state)).fill(0);
}

function gradientNorm(arena: Arena, parameters: ParameterSet): number {
  const names = parameters.list.map(({ name }) => name);
  return normOf(squaresOf(device, arena, wholeOf(parameters), names));
}

test("the gradient norm is that of all parameters, and clipping brings it to the limit", () => {
  const { arena, parameters } = makeModel();
  fillGradients(parameters, new Random(SEED), 0.3);
  let total = 0;
  for (const { gradient } of parameters.list) {
    for (const value of view(gradient)) total += value ** 2;
  }
  const norm = gradientNorm(arena, parameters);
  assert.ok(Math.abs(norm / Math.sqrt(total) - 1) < 1e-6, `${norm} for ${Math.sqrt(total)}`);
  assert.equal(clipScale(4, 1), 0.25);
  assert.equal(clipScale(0.5, 1), 1);
  assert.equal(clipScale(4, 0), 1, "a limit of 0 never clips");
});

test("the norm of gradients with a NaN is not finite", () => {
  const { arena, parameters } = makeModel();
  view(parameters.get("head").gradient)[3] = Number.NaN;
  assert.ok(Number.isNaN(gradientNorm(arena, parameters)));
});

test("Newton–Schulz brings every singular value near 1, wide, tall and in batches", () => {
  const arena = new Arena(device.memory, "test");
  const random = new Random(SEED, "matrices");
  for (const [count, rows, columns] of [
    [1, 6, 17],
    [1, 17, 6],
    [3, 8, 8],
    [4, 5, 12],
  ] as const) {
    const x = arena.allocate("f32", [count * rows, columns]);
    const values = view(x);
    for (let index = 0; index < values.length; index++) values[index] = 1e-4 * random.normal();
    const before = values.slice();
    orthogonalize(device, { x, count, arena });
    for (let index = 0; index < count; index++) {
      const matrix = sliceRows(x, index * rows, (index + 1) * rows);
      const shape = `matrix ${index} of ${count} × ${rows} × ${columns}, seed ${SEED}`;
      assertNearlyOrthogonal(matrix, shape);
      // The direction is kept: ⟨X, NS(X)⟩ is the sum of singular values, up to their factors.
      let inner = 0;
      const start = index * rows * columns;
      for (let at = start; at < start + rows * columns; at++) inner += values[at]! * before[at]!;
      assert.ok(inner > 0, shape);
    }
  }
});

/**
 * Q = W Wᵀ (or Wᵀ W) has its diagonal in the square of the singular values' range and little beside
 * it.
 */
function assertNearlyOrthogonal(matrix: Tensor<"f32">, what: string): void {
  const { rows, columns } = matrix;
  const values = view(matrix);
  const isTall = rows > columns;
  const side = Math.min(rows, columns);
  const at = (vector: number, element: number): number =>
    isTall ? values[element * columns + vector]! : values[vector * columns + element]!;
  for (let i = 0; i < side; i++) {
    for (let j = 0; j < side; j++) {
      let sum = 0;
      for (let k = 0; k < Math.max(rows, columns); k++) sum += at(i, k) * at(j, k);
      const isGood = i === j ? sum > 0.35 && sum < 1.6 : Math.abs(sum) < 0.45;
      assert.ok(isGood, `${what}: Q[${i},${j}] = ${sum}`);
    }
  }
}

test("a matrix of zeros stays zero", () => {
  const arena = new Arena(device.memory, "test");
  const x = arena.allocateZeros("f32", [4, 6]);
  orthogonalize(device, { x, count: 2, arena });
  assert.ok(view(x).every((value) => value === 0));
});

test("Muon takes experts and fused projections as matrices of their own, the rest by AdamW", () => {
  const { config, parameters } = makeModel();
  const count = (name: string): number => matricesIn(parameters.get(name));
  assert.equal(count("layers.1.moe.experts.gateUp"), 2 * config.numRoutedExperts);
  assert.equal(count("layers.1.moe.experts.down"), config.numRoutedExperts);
  assert.equal(count("layers.0.feedForward.gateUp"), 2);
  assert.equal(count("layers.0.attention.output"), 1);
  const byAdamW = parameters.list.filter((parameter) => !isOrthogonalized(parameter));
  assert.deepEqual([...new Set(byAdamW.map(({ role }) => role))].sort(), [
    "embedding",
    "gate",
    "head",
    "norm",
  ]);
});

test("a Muon update has the root mean square of 0.2 learning rates, plus decay", () => {
  const { arena, parameters } = makeModel();
  const optimizer = new Muon(device, { state: arena, scratch: arena }, wholeOf(parameters), {
    ...ADAMW,
    momentum: 0.95,
  });
  fillGradients(parameters, new Random(SEED), 1e-3);
  const parameter = parameters.get("layers.0.attention.output");
  const before = view(parameter.value).slice();
  optimizer.update({ learningRate: 0.01, gradientScale: 1, step: 1 });
  const values = view(parameter.value);
  let total = 0;
  for (let index = 0; index < values.length; index++) {
    total += (values[index]! - before[index]! * (1 - 0.01 * 0.1)) ** 2;
  }
  const [rows, columns] = parameter.shape;
  // An orthogonal factor has min(rows, columns) singular values of 1 in rows·columns elements.
  const expected = 0.01 * 0.2 * Math.sqrt(Math.max(rows, columns) / Math.max(rows, columns));
  const ratio = Math.sqrt(total / values.length) / expected;
  assert.ok(ratio > 0.7 && ratio < 1.25, `ratio ${ratio}`);
});

test("Muon keeps its moments in bf16 where it is told to, and moves nearly alike", () => {
  const moved = (["f32", "bf16", "bf16.stochastic"] as const).map((format) => {
    const { arena, parameters } = makeModel();
    const arenas = { state: arena, scratch: arena };
    const settings = { ...ADAMW, weightDecay: 0, momentum: 0.95 };
    const optimizer = new Muon(device, arenas, wholeOf(parameters), settings, { format, seed: 3 });
    for (const state of optimizer.state) {
      const stored = format === "f32" ? "f32" : "bf16";
      for (const span of SPAN_NAMES) assert.equal(state[span].dtype, stored);
    }
    const before = parameters.list.map(({ value }) => view(value).slice());
    const random = new Random(SEED);
    for (let step = 1; step <= 5; step++) {
      fillGradients(parameters, random, 1e-3);
      optimizer.update({ learningRate: 0.01, gradientScale: 1, step });
    }
    return parameters.list.flatMap(({ value }, order) =>
      Array.from(view(value), (after, index) => after - before[order]![index]!),
    );
  });
  const length = Math.hypot(...moved[0]!);
  for (const rounded of moved.slice(1)) {
    const gap = Math.hypot(...rounded.map((value, index) => value - moved[0]![index]!)) / length;
    assert.ok(gap > 0 && gap < 0.02, `${gap} of the way, seed ${SEED}`);
  }
});

test("both optimizers descend a quadratic", () => {
  for (const name of ["adamw", "muon"] as const) {
    const { arena, parameters } = makeModel();
    const settings = { ...ADAMW, weightDecay: 0, momentum: 0.95 };
    const optimizer =
      name === "adamw"
        ? new AdamW(device, arena, wholeOf(parameters), settings)
        : new Muon(device, { state: arena, scratch: arena }, wholeOf(parameters), settings);
    const target = new Random(SEED, "target");
    const targets = parameters.list.map(({ value }) =>
      Float32Array.from(view(value), () => 0.1 * target.normal()),
    );
    const distance = (): number => {
      let sum = 0;
      for (const [order, { value, gradient }] of parameters.list.entries()) {
        const [values, gradients, goal] = [view(value), view(gradient), targets[order]!];
        for (let index = 0; index < values.length; index++) {
          gradients[index] = values[index]! - goal[index]!;
          sum += gradients[index]! ** 2;
        }
      }
      return sum;
    };
    const first = distance();
    for (let step = 1; step <= 40; step++) {
      optimizer.update({ learningRate: 0.02 * (1 - step / 41), gradientScale: 1, step });
      distance();
    }
    assert.ok(distance() < 0.4 * first, `${name}: ${distance()} after ${first}, seed ${SEED}`);
  }
});

function assertClose(
  actual: readonly number[],
  expected: readonly number[],
  tolerance: number,
  what: string,
): void {
  for (const [index, value] of actual.entries()) {
    const difference = Math.abs(value - expected[index]!);
    assert.ok(difference < tolerance, `${what}[${index}]: ${value}, expected ${expected[index]}`);
  }
}
