/**
 * @file Each layer on its own: gradients of its input and of its parameters against central
 * differences in f64.
 */
import { test } from "node:test";
import { Random } from "../base/random.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import { balanceLossOf } from "./balance-loss.ts";
import { Block } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import { Embedding } from "./embedding.ts";
import { FeedForward } from "./feed-forward.ts";
import { Head, readLosses } from "./head.ts";
import { Linear } from "./linear.ts";
import { MlaLayer } from "./mla.ts";
import { MoeLayer } from "./moe.ts";
import { MtpModule } from "./mtp.ts";
import { RmsNorm } from "./norm.ts";
import { plainGradient } from "./operand.ts";
import type { ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import {
  assertGradient,
  fillNormal,
  makePass,
  openReferenceDevice,
  randomParameters,
  TINY,
} from "./test-support.ts";

const SEED = 5;
const BATCH = { numSequences: 2, seqLength: 4 };
const NUM_TOKENS = 8;

const agree = (layer: string): string => `the gradients of ${layer} agree with central differences`;

interface Setting {
  readonly pass: Pass;
  readonly config: ModelConfig;
  readonly parameters: ParameterSet;
  readonly random: Random;
  tensor(columns: number, std?: number): Tensor<FloatType>;
}

/**
 * The layer as a function from x to out, its gradient, and what else its objective has (a balance
 * loss).
 */
interface LayerUnderTest {
  readonly inputDim: number;
  readonly outputDim: number;
  forward(x: Tensor<FloatType>, out: Tensor<FloatType>): number;
  /** Overwrites dX; parameters' gradients are added to. */
  backward(x: Tensor<FloatType>, dOut: Tensor<FloatType>, dX: Tensor<FloatType>): void;
}

async function checkLayer(
  overrides: Partial<ModelConfig>,
  make: (setting: Setting) => LayerUnderTest,
  balanceScale = 0,
): Promise<void> {
  await using device = await openReferenceDevice();
  const config = { ...TINY, ...overrides };
  const pass = makePass(device, config, { ...BATCH, balanceScale });
  const random = new Random(SEED, "layers");
  const tensor = (columns: number, std = 1): Tensor<FloatType> => {
    const made = pass.saved.allocate("f64", [NUM_TOKENS, columns]);
    fillNormal(made, random, std);
    return made;
  };
  const parameters = randomParameters(device, config, SEED);
  const layer = make({ pass, config, parameters, random, tensor });
  const x = tensor(layer.inputDim);
  const out = tensor(layer.outputDim);
  const dOut = tensor(layer.outputDim);
  const dX = tensor(layer.inputDim);
  const objective = (): number => {
    using _saved = pass.saved.mark();
    view(out).fill(0);
    const beside = layer.forward(x, out);
    const weights = view(dOut);
    return Array.from(view(out)).reduce((sum, value, at) => sum + value * weights[at]!, beside);
  };
  layer.backward(x, dOut, dX);
  pass.weightGrads.run();
  const gradient = Float64Array.from(view(dX));
  assertGradient({ name: "input", value: x, gradient, objective, seed: SEED });
  for (const { name, value, gradient } of parameters.list) {
    const copy = Float64Array.from(view(gradient));
    assertGradient({ name, value, gradient: copy, objective, seed: SEED });
  }
}

test(agree("a linear layer"), () =>
  checkLayer({}, ({ pass, config, parameters }) => {
    const linear = new Linear(parameters.get("layers.0.attention.keyValueDown"));
    return {
      inputDim: config.hiddenDim,
      outputDim: linear.weight.shape[0],
      forward(x, out) {
        linear.forward(pass, x, out, "accumulate");
        return 0;
      },
      backward(input, dOut, dInput) {
        linear.backward(pass, { input, dOut: plainGradient(dOut), dInput, mode: "overwrite" });
      },
    };
  }),
);

test(agree("a norm"), () =>
  checkLayer({}, ({ pass, config, parameters }) => {
    const norm = new RmsNorm(parameters.get("norm"), 1e-3);
    return {
      inputDim: config.hiddenDim,
      outputDim: config.hiddenDim,
      forward(x, out) {
        norm.forward(pass, x, out);
        return 0;
      },
      backward(x, dOut, dX) {
        norm.backward(pass, { x, dOut, dX, mode: "overwrite" });
      },
    };
  }),
);

for (const qLoraRank of [6, null]) {
  test(agree(`attention with ${qLoraRank === null ? "a direct" : "a compressed"} query`), () =>
    checkLayer({ qLoraRank }, ({ pass, config, parameters, tensor }) => {
      const mla = new MlaLayer(config, parameters, "layers.0.attention");
      const hiddenDim = config.hiddenDim;
      return {
        inputDim: hiddenDim,
        outputDim: hiddenDim,
        forward(x, out) {
          mla.forward(pass, { operand: x, cached: null }, out);
          return 0;
        },
        backward(input, dOut, dInput) {
          const saved = mla.forward(pass, { operand: input, cached: null }, tensor(hiddenDim));
          mla.backward(pass, saved, { input, dOut, dInput });
        },
      };
    }),
  );
}

test(agree("a feed-forward network"), () =>
  checkLayer({}, ({ pass, config, parameters, tensor }) => {
    const layer = new FeedForward(parameters, "layers.0.feedForward");
    const hiddenDim = config.hiddenDim;
    return {
      inputDim: hiddenDim,
      outputDim: hiddenDim,
      forward(x, out) {
        layer.forward(pass, x, out);
        return 0;
      },
      backward(input, dOut, dInput) {
        const saved = layer.forward(pass, input, tensor(hiddenDim));
        layer.backward(pass, saved, { input, dOut, dInput, mode: "overwrite" });
      },
    };
  }),
);

const MOE_CASES: Readonly<Record<string, Partial<ModelConfig>>> = {
  "with a sigmoid gate": {},
  "with a softmax gate, weights not normalised": {
    scoring: "softmax",
    topkMethod: "greedy",
    normTopkProb: false,
  },
  "with expert groups": { numExpertGroups: 2, numChosenGroups: 1 },
};
for (const [name, overrides] of Object.entries(MOE_CASES)) {
  test(agree(`a mixture of experts ${name}, with its balance loss`), () => {
    const balanceScale = 0.3;
    return checkLayer(
      overrides,
      ({ pass, config, parameters, random, tensor }) => {
        const bias = pass.saved.allocate("f64", [1, config.numRoutedExperts]);
        fillNormal(bias, random, 0.1);
        const layer = new MoeLayer(config, parameters, { prefix: "layers.1.moe", bias });
        const hiddenDim = config.hiddenDim;
        return {
          inputDim: hiddenDim,
          outputDim: hiddenDim,
          forward(x, out) {
            return balanceScale * balanceLossOf(layer.forward(pass, x, out).gate.balance);
          },
          backward(input, dOut, dInput) {
            const saved = layer.forward(pass, input, tensor(hiddenDim));
            layer.backward(pass, saved, { input, dOut, dInput });
          },
        };
      },
      balanceScale,
    );
  });
}

for (const layerIndex of [0, 1]) {
  test(agree(`a block with a ${layerIndex === 0 ? "dense" : "mixture-of-experts"} half`), () =>
    checkLayer({}, ({ pass, config, parameters }) => {
      const bias = pass.saved.allocateZeros("f64", [1, config.numRoutedExperts]);
      const block = new Block(config, parameters, { layerIndex, bias });
      const hiddenDim = config.hiddenDim;
      return {
        inputDim: hiddenDim,
        outputDim: hiddenDim,
        forward(x, out) {
          block.forward(pass, x, out);
          return 0;
        },
        backward(x, dOut, dX) {
          const saved = block.forward(pass, x, pass.saved.allocate("f64", [NUM_TOKENS, hiddenDim]));
          view(dX).set(view(dOut));
          block.backward(pass, saved, dX);
        },
      };
    }),
  );
}

test(agree("a multi-token-prediction module, towards the hidden state and the embedding"), () =>
  checkLayer({ numMtpModules: 1 }, ({ pass, config, parameters, random }) => {
    const bias = pass.saved.allocateZeros("f64", [1, config.numRoutedExperts]);
    const embedding = new Embedding(parameters.get("embedding"));
    const module = new MtpModule(config, parameters, { moduleIndex: 0, bias, embedding });
    const tokens = pass.saved.allocate("i32", [1, NUM_TOKENS]);
    const ids = view(tokens);
    for (let at = 0; at < NUM_TOKENS; at++) ids[at] = random.below(config.vocabSize);
    return {
      inputDim: config.hiddenDim,
      outputDim: config.hiddenDim,
      forward(hidden, out) {
        view(out).set(view(module.forward(pass, { hidden, tokens }).out));
        return 0;
      },
      backward(hidden, dOut, dHidden) {
        const saved = module.forward(pass, { hidden, tokens });
        const gradient = pass.saved.allocate("f64", [NUM_TOKENS, config.hiddenDim]);
        view(gradient).set(view(dOut));
        module.backward(pass, saved, { dOut: gradient, dHidden });
      },
    };
  }),
);

test(agree("the head with its cross entropy and z-loss"), () =>
  checkLayer({}, ({ pass, config, parameters, random }) => {
    const head = new Head(parameters.get("head"));
    const targets = pass.saved.allocate("i32", [1, NUM_TOKENS]);
    const ids = view(targets);
    for (let at = 0; at < NUM_TOKENS; at++) ids[at] = random.below(config.vocabSize);
    const zLoss = 0.1;
    return {
      inputDim: config.hiddenDim,
      outputDim: 1,
      forward: (input) => 0.7 * readLosses(head.loss(pass, { input, targets, zLoss })).objective,
      backward(input, _dOut, dInput) {
        const gradScale = 0.7;
        const call = { input, targets, zLoss, gradScale, dInput, mode: "overwrite" } as const;
        head.lossAndGradient(pass, call);
      },
    };
  }),
);
