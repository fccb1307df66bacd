/** @file What `hadal bench` takes. */

export const bench = {
  name: "bench",
  summary: "measure kernels, training, decoding, serving or ranks, one process a variant",
  usage: "kernels|train|decode|serve|parallel [--against PEER] [--trained PATH]",
  operands: {
    what: {
      placeholder: "WHAT",
      help: "what to measure",
      choices: ["kernels", "train", "decode", "serve", "parallel"],
    },
  },
  flags: {
    against: {
      kind: "text",
      placeholder: "PEER",
      choices: ["torch", "llama.cpp"],
      help: "measure beside another program, in turns: torch (train) or llama.cpp (decode)",
    },
    trained: {
      kind: "text",
      placeholder: "PATH",
      help: "a run or checkpoint whose drafts are measured too (serve)",
    },
  },
  examples: [
    { command: "hadal bench kernels", does: "medians, with their share of the measured peak" },
    { command: "hadal bench decode --json", does: "tokens per second, as one JSON array" },
    {
      command: "hadal bench train --against torch",
      does: "the same model's step in PyTorch: how many times its speed, and its memory",
    },
    {
      command: "hadal bench serve --trained runs/first",
      does: "streams, first tokens, long prompts, what HTTP costs; drafts with that run",
    },
    {
      command: "hadal bench decode --against llama.cpp",
      does: "the same weights in llama-bench: how many times its tokens per second",
    },
  ],
} as const;
