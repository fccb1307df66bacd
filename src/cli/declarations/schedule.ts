/** @file What `hadal schedule` takes. */
export const schedule = {
  name: "schedule",
  summary: "print or draw a pipeline schedule, with its makespan, bubble and memory",
  usage: "KIND --ranks N --micro-batches N",
  operands: {
    kind: {
      placeholder: "KIND",
      help: "the schedule",
      choices: ["gpipe", "1f1b", "interleaved", "zb1p", "dualpipe", "dualpipev"],
    },
  },
  flags: {
    ranks: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 512,
      required: true,
      help: "ranks of the pipeline",
    },
    "micro-batches": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 4096,
      required: true,
      help: "micro-batches of a step",
    },
    "stages-per-rank": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 64,
      default: 2,
      help: "stages on each rank of the interleaved schedule",
    },
    csv: { kind: "switch", help: "print the CSV that PyTorch's pipelining reads, alone" },
    svg: { kind: "text", placeholder: "FILE", help: "draw it, bubbles dark" },
    measured: {
      kind: "text",
      placeholder: "FILE",
      help: "a run's Chrome trace, to be told and drawn beside what was planned",
    },
  },
  examples: [
    {
      command: "hadal schedule dualpipe --ranks 8 --micro-batches 20",
      does: "one row a rank: F forward, B5&F4 a pair, I and W split backward",
    },
    {
      command: "hadal schedule zb1p --ranks 4 --micro-batches 8 --svg zb1p.svg",
      does: "a picture of it",
    },
  ],
} as const;
