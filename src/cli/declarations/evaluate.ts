/** @file What `hadal evaluate` takes. */

export const evaluate = {
  name: "evaluate",
  summary: "measure a model on text it has not seen",
  usage: "bpb --model PATH --data PATH…",
  operands: {
    task: { placeholder: "TASK", help: "what to measure: bits per byte", choices: ["bpb"] },
  },
  flags: {
    model: {
      kind: "text",
      placeholder: "PATH",
      help: "a run folder or a checkpoint",
      required: true,
    },
    weights: {
      kind: "text",
      placeholder: "FORMAT",
      help: "keep weights as f32, bf16, fp8, int8, int4, int4:g64a…; as stored if left out",
    },
    data: {
      kind: "list",
      placeholder: "PATH",
      variadic: true,
      help: "files and folders of text, read as hadal train reads them",
      required: true,
    },
  },
  examples: [
    {
      command: "hadal evaluate bpb --model runs/first --data ./held-out",
      does: "bits per byte of the folder under the model",
    },
  ],
} as const;
