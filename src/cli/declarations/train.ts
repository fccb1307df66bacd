/** @file What `hadal train` takes. */

export const train = {
  name: "train",
  summary: "train a model and write a run folder with its checkpoints and metrics",
  usage: "--data PATH… [--preset NAME | --config FILE] --out FOLDER [flags]",
  flags: {
    data: {
      kind: "list",
      placeholder: "PATH",
      variadic: true,
      help: "UTF-8 files and folders; .jsonl with a text field, .gz; .gitignore is honoured",
      required: true,
      unless: "resume",
    },
    preset: {
      kind: "text",
      placeholder: "NAME",
      choices: ["tiny", "small", "base"],
      help: "the size of the model and its recipe; tiny without --config",
    },
    config: {
      kind: "text",
      placeholder: "FILE",
      help: "a JSON file with the settings, as in the config.json of a run folder",
    },
    set: {
      kind: "list",
      placeholder: "KEY=VALUE",
      help: "change one setting of the preset or the file, by its dotted name",
    },
    recipe: {
      kind: "text",
      placeholder: "NAME|FILE",
      help: "which tensors have which format: fp8, bf16, f32, or a JSON file of changes",
    },
    out: {
      kind: "text",
      placeholder: "FOLDER",
      help: "the run folder to write, such as runs/first",
      required: true,
    },
    resume: { kind: "switch", help: "carry on from the last checkpoint in the run folder" },
    steps: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      help: "stop when the run, resumes included, has taken this many steps",
    },
    tokens: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      help: "stop when it has trained on this many tokens",
    },
    minutes: {
      kind: "number",
      placeholder: "N",
      above: 0,
      help: "steps for about this long at the first ones' speed; data, last evaluation not counted",
    },
    seed: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      help: "the one source of all randomness; 1 if nothing says otherwise",
    },
    ranks: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 64,
      help: "train over N ranks on threads, a pipeline without --layout; mpirun brings its own",
    },
    layout: {
      kind: "text",
      placeholder: "AXES",
      help: "pp=2,ep=2,dp=2: ranks of a pipeline, that share experts, that share the batch",
    },
    schedule: {
      kind: "text",
      placeholder: "NAME",
      choices: ["gpipe", "1f1b", "interleaved", "zb1p", "dualpipe", "dualpipev"],
      help: "the order of work in a pipeline; dualpipe if nothing says otherwise",
    },
    "redundant-experts": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      help: "with ep ranks: so many places more than experts, for copies of the busiest",
    },
    "rebalance-steps": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      help: "with ep ranks: experts move to suit their load after so many (copies: 100); 0: never",
    },
    device: {
      kind: "text",
      placeholder: "NAME",
      choices: ["cpu"],
      help: "what to compute on",
      default: "cpu",
    },
  },
  atMostOneOf: [
    ["preset", "config", "resume"],
    ["seed", "resume"],
    ["recipe", "resume"],
    ["steps", "tokens", "minutes"],
  ],
  examples: [
    {
      command: "hadal train --data ./src --preset tiny --out runs/first --minutes 5",
      does: "five minutes on the text files of a folder",
    },
    {
      command: "hadal train --data *.jsonl --out runs/deep --steps 500 --set model.numLayers=6",
      does: "the tiny preset with more layers",
    },
    {
      command: "hadal train --data ./src --recipe fp8 --out runs/fp8 --steps 500",
      does: "products, caches and moments in the formats of DeepSeek-V3's FP8 recipe",
    },
    {
      command: "hadal train --data ./src --out runs/ranks --steps 500 --ranks 2",
      does: "over two ranks on threads by DualPipe; under mpirun, over processes",
    },
    {
      command: "hadal train --data ./src --out runs/ep --steps 500 --ranks 2 --layout ep=2",
      does: "each rank with half of every layer's experts, and half of each batch",
    },
    {
      command: "hadal train --out r --resume --ranks 2 --layout ep=2 --redundant-experts 2",
      does: "carries on with copies of the busiest experts, which follow the load",
    },
    {
      command: "hadal train --out runs/first --resume --minutes 10",
      does: "carries on until the run has had ten minutes in all",
    },
  ],
} as const;
