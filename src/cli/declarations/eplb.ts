/** @file What `hadal eplb` takes. */

export const eplb = {
  name: "eplb",
  summary: "place experts and redundant copies on GPUs so that the load is even",
  usage: "--loads FILE --replicas R --groups G --nodes N --gpus D",
  flags: {
    loads: {
      kind: "text",
      placeholder: "FILE",
      required: true,
      help: "JSON: the tokens of each expert, one array a layer",
    },
    replicas: {
      kind: "number",
      placeholder: "R",
      whole: true,
      least: 1,
      most: 65536,
      required: true,
      help: "physical experts of a layer, all GPUs together",
    },
    groups: {
      kind: "number",
      placeholder: "G",
      whole: true,
      least: 1,
      most: 65536,
      required: true,
      help: "expert groups; kept on one node each if the nodes divide them",
    },
    nodes: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 65536,
      required: true,
      help: "nodes",
    },
    gpus: {
      kind: "number",
      placeholder: "D",
      whole: true,
      least: 1,
      most: 65536,
      required: true,
      help: "GPUs, all nodes together",
    },
  },
  examples: [
    {
      command: "hadal eplb --loads loads.json --replicas 16 --groups 4 --nodes 2 --gpus 8",
      does: "each layer's placement, GPU by GPU, and how even it is",
    },
  ],
} as const;
