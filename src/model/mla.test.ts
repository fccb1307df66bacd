/** @file Attention and the MTP module against plain arithmetic written from their formulas. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig, RopeScaling } from "./config.ts";
import { Embedding } from "./embedding.ts";
import { MlaLayer } from "./mla.ts";
import { MtpModule } from "./mtp.ts";
import type { ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import {
  fillNormal,
  makePass,
  openReferenceDevice,
  randomParameters,
  TINY,
} from "./test-support.ts";

const SEED = 31;
const SEQ_LENGTH = 5;
const PREFIX = "layers.0.attention";
type Vector = readonly number[];

const YARN: RopeScaling = {
  type: "yarn",
  factor: 8,
  betaFast: 2,
  betaSlow: 0.25,
  mscale: 1,
  mscaleAllDim: 0.5,
  originalMaxPositionEmbeddings: 16,
};

interface Bench {
  readonly config: ModelConfig;
  readonly pass: Pass;
  readonly parameters: ParameterSet;
  readonly x: Tensor<FloatType>;
}

function makeBench(device: Device, overrides: Partial<ModelConfig>): Bench {
  const config = { ...TINY, ...overrides };
  const pass = makePass(device, config, {
    numSequences: 1,
    seqLength: SEQ_LENGTH,
    balanceScale: 0,
  });
  const x = pass.saved.allocate("f64", [SEQ_LENGTH, config.hiddenDim]);
  fillNormal(x, new Random(SEED, "x"));
  return { config, pass, parameters: randomParameters(device, config, SEED), x };
}

function rowsOf(tensor: Tensor<FloatType>): Vector[] {
  const values = view(tensor);
  return Array.from({ length: tensor.rows }, (_, row) =>
    Array.from(values.subarray(row * tensor.columns, (row + 1) * tensor.columns)),
  );
}

const dot = (a: Vector, b: Vector): number => a.reduce((sum, v, i) => sum + v * b[i]!, 0);
const times = (matrix: readonly Vector[], x: Vector): number[] => matrix.map((row) => dot(row, x));
const normed = (x: Vector, gain: Vector, epsilon: number): number[] => {
  const rms = Math.sqrt(dot(x, x) / x.length + epsilon);
  return x.map((value, index) => (value / rms) * gain[index]!);
};

/** Pairs (2i, 2i+1) turned as complex numbers. */
function turned(x: Vector, position: number, frequencies: Vector, multiplier: number): number[] {
  return x.map((value, index) => {
    const angle = position * frequencies[Math.floor(index / 2)]!;
    const other = index % 2 === 0 ? -x[index + 1]! : x[index - 1]!;
    return multiplier * (value * Math.cos(angle) + other * Math.sin(angle));
  });
}

interface Rotary {
  readonly frequencies: Vector;
  readonly multiplier: number;
  readonly scale: number;
}

/** The attention's output for each position, by the formulas of the DeepSeek-V2 report. */
function naiveAttention({ config, parameters, x }: Bench, rotary: Rotary): number[][] {
  const weight = (name: string): Vector[] => rowsOf(parameters.get(`${PREFIX}.${name}`).value);
  const { numHeads, qkNopeHeadDim: nope, qkRopeHeadDim: rope, vHeadDim, rmsNormEps } = config;
  const { frequencies, multiplier, scale } = rotary;
  const tokens = rowsOf(x).map((token, position) => {
    const turn = (part: Vector): number[] => turned(part, position, frequencies, multiplier);
    const q =
      config.qLoraRank === null
        ? times(weight("query"), token)
        : times(
            weight("queryUp"),
            normed(times(weight("queryDown"), token), weight("queryNorm")[0]!, rmsNormEps),
          );
    const down = times(weight("keyValueDown"), token);
    const latent = normed(down.slice(0, config.kvLoraRank), weight("latentNorm")[0]!, rmsNormEps);
    const kv = times(weight("keyValueUp"), latent);
    const keyRope = turn(down.slice(config.kvLoraRank));
    const heads = Array.from({ length: numHeads }, (_, head) => {
      const query = q.slice(head * (nope + rope), (head + 1) * (nope + rope));
      const keyValue = kv.slice(head * (nope + vHeadDim), (head + 1) * (nope + vHeadDim));
      return {
        query: [...query.slice(0, nope), ...turn(query.slice(nope))],
        key: [...keyValue.slice(0, nope), ...keyRope],
        value: keyValue.slice(nope),
      };
    });
    return heads;
  });
  return tokens.map((heads, position) => {
    const attended = heads.flatMap(({ query }, head) => {
      const past = tokens.slice(0, position + 1).map((token) => token[head]!);
      const exponentials = past.map(({ key }) => Math.exp(scale * dot(query, key)));
      const total = exponentials.reduce((sum, value) => sum + value, 0);
      return Array.from({ length: vHeadDim }, (_, column) =>
        past.reduce((sum, { value }, at) => sum + (exponentials[at]! / total) * value[column]!, 0),
      );
    });
    return times(weight("output"), attended);
  });
}

function assertClose(actual: ArrayLike<number>, expected: Vector): void {
  expected.forEach((value, index) => {
    const error = Math.abs(value - actual[index]!);
    assert.ok(error < 1e-10, `[${index}] (seed ${SEED}): ${actual[index]}, expected ${value}`);
  });
}

const PLAIN: Rotary = {
  frequencies: [1, 100 ** -0.5],
  multiplier: 1,
  scale: 8 ** -0.5,
};
/** dim(2) = 0.105 and dim(0.25) = 1.008 turn into low 0 and high 2, so the ramp is [0, ½]. */
const STRETCHED: Rotary = {
  frequencies: [1, 100 ** -0.5 * (0.5 + 0.5 / 8)],
  multiplier: (0.1 * Math.log(8) + 1) / (0.05 * Math.log(8) + 1),
  scale: 8 ** -0.5 * (0.05 * Math.log(8) + 1) ** 2,
};
const CASES: readonly (readonly [string, Partial<ModelConfig>, Rotary])[] = [
  ["with a compressed query", {}, PLAIN],
  ["with a direct query", { qLoraRank: null }, PLAIN],
  ["with YaRN", { ropeScaling: YARN }, STRETCHED],
];

for (const [name, overrides, rotary] of CASES) {
  test(`attention ${name} is what the formulas give, added to what was there`, async () => {
    await using device = await openReferenceDevice();
    const bench = makeBench(device, overrides);
    const layer = new MlaLayer(bench.config, bench.parameters, PREFIX);
    const out = bench.pass.saved.allocate("f64", [SEQ_LENGTH, TINY.hiddenDim]);
    view(out).fill(2);
    layer.forward(bench.pass, { operand: bench.x, cached: null }, out);
    assertClose(
      view(out),
      naiveAttention(bench, rotary)
        .flat()
        .map((value) => value + 2),
    );
  });
}

async function withModule(
  run: (bench: Bench, forward: (hidden: Tensor<FloatType>) => Float64Array) => void,
): Promise<void> {
  await using device = await openReferenceDevice();
  const bench = makeBench(device, { numMtpModules: 1 });
  const { pass, config, parameters } = bench;
  const bias = pass.saved.allocateZeros("f64", [1, config.numRoutedExperts]);
  const embedding = new Embedding(parameters.get("embedding"));
  const module = new MtpModule(config, parameters, { moduleIndex: 0, bias, embedding });
  const tokens = pass.saved.allocate("i32", [1, SEQ_LENGTH]);
  view(tokens).set([3, 1, 4, 1, 5]);
  run(bench, (hidden) => Float64Array.from(view(module.forward(pass, { hidden, tokens }).out)));
}

test("an MTP module reads the embedding first and the hidden state second", async () => {
  await withModule(({ parameters, x, config }, forward) => {
    const weight = view(parameters.get("mtp.0.projection").value);
    const { hiddenDim } = config;
    const before = forward(x);
    const clearHalf = (half: number): void => {
      for (let row = 0; row < hiddenDim; row++) {
        const start = (2 * row + half) * hiddenDim;
        weight.fill(0, start, start + hiddenDim);
      }
    };
    clearHalf(1);
    const withoutHidden = forward(x);
    assert.notDeepEqual(withoutHidden, before);
    view(x).forEach((value, index, all) => {
      all[index] = index - value;
    });
    assert.deepEqual(forward(x), withoutHidden, "the second half is the hidden state's");
    view(parameters.get("embedding").value).fill(1);
    assert.notDeepEqual(forward(x), withoutHidden, "the first half is the embedding's");
  });
});
