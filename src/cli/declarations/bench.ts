/** @file What `hadal bench` takes. */

export const bench = {
  name: "bench",
  summary: "measure kernels, training or decoding, one process a variant",
  usage: "kernels|train|decode [--against PEER]",
  operands: {
    what: {
      placeholder: "WHAT",
      help: "what to measure",
      choices: ["kernels", "train", "decode"],
    },
  },
  flags: {
    against: {
      kind: "text",
      placeholder: "PEER",
      choices: ["torch"],
      help: "measure beside another program, processes alternating (train)",
    },
  },
  examples: [
    { command: "hadal bench kernels", does: "medians, with their share of the measured peak" },
    { command: "hadal bench decode --json", does: "tokens per second, as one JSON array" },
    {
      command: "hadal bench train --against torch",
      does: "the same model's step in PyTorch: how many times its speed, and its memory",
    },
  ],
} as const;
