/** @file What `hadal launch` takes. */

export const launch = {
  name: "launch",
  summary: "start a program once a rank on this machine, under MPI",
  usage: "--ranks N -- COMMAND…",
  rest: { placeholder: "COMMAND…", help: "the program and its words; `hadal` means this one" },
  flags: {
    ranks: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 256,
      required: true,
      help: "ranks, one process each",
    },
  },
  examples: [
    {
      command: "hadal launch --ranks 2 -- node my-ranks.js",
      does: "two processes that find each other through MPI",
    },
  ],
} as const;
