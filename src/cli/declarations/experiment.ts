/** @file What `hadal experiment` takes. */
export const experiment = {
  name: "experiment",
  summary: "repeat an experiment of the FP8 framework: numbers, pictures, run folders",
  usage: "WHAT --out FOLDER [flags]",
  operands: {
    what: {
      placeholder: "WHAT",
      help: "what to find out",
      choices: ["fp8-loss", "accumulation"],
    },
  },
  flags: {
    out: {
      kind: "text",
      placeholder: "FOLDER",
      required: true,
      help: "where results, pictures and runs go; an interrupted experiment goes on there",
    },
    data: {
      kind: "list",
      placeholder: "PATH",
      variadic: true,
      help: "fp8-loss: text to train on; the quickstart's declarations if left out",
    },
    preset: {
      kind: "text",
      placeholder: "NAME",
      choices: ["tiny", "small", "base"],
      default: "small",
      help: "fp8-loss: the model to train",
    },
    tokens: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      default: 1_000_000,
      help: "fp8-loss: tokens for each variant",
    },
    set: {
      kind: "list",
      placeholder: "KEY=VALUE",
      help: "fp8-loss: change one setting of the preset",
    },
    "inject-outliers": {
      kind: "number",
      placeholder: "FACTOR",
      above: 1,
      help: "fp8-loss: a token this much larger than all others beside every activation",
    },
    seed: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      default: 1,
      help: "the one source of all randomness",
    },
  },
  examples: [
    {
      command: "hadal experiment accumulation --out runs/accumulation",
      does: "the error over the depth of a product, with and without promotion",
    },
    {
      command: "hadal experiment fp8-loss --out runs/fp8-loss --tokens 1000000",
      does: "the small preset in bf16, in FP8, and in FP8 with one scale a tensor",
    },
  ],
} as const;
