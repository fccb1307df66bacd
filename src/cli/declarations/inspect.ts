/** @file What `hadal inspect` takes. */

export const inspect = {
  name: "inspect",
  summary: "show a model's parameters, memory and tensors",
  usage: "MODEL",
  operands: { model: { placeholder: "MODEL", help: "a run folder or a checkpoint" } },
  flags: {},
  examples: [
    {
      command: "hadal inspect runs/first",
      does: "parameters total and active, part by part, and the memory training takes",
    },
  ],
} as const;
