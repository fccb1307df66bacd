/** @file What `hadal inspect` takes. */

export const inspect = {
  name: "inspect",
  summary: "show a model's parameters, memory and tensors",
  usage: "MODEL",
  operands: { model: { placeholder: "MODEL", help: "a run folder or a checkpoint" } },
  flags: {
    recipe: {
      kind: "text",
      placeholder: "NAME|FILE",
      help: "show what this recipe stores how, and what it costs; the run's own if left out",
    },
  },
  examples: [
    {
      command: "hadal inspect runs/first",
      does: "parameters total and active, part by part, and the memory training takes",
    },
    {
      command: "hadal inspect runs/first --recipe fp8",
      does: "the FP8 recipe line by line, with the bytes each costs for this model",
    },
  ],
} as const;
