/** @file What `hadal bench` takes. */

export const bench = {
  name: "bench",
  summary: "measure kernels, training or decoding, one process a variant",
  usage: "kernels|train|decode",
  operands: {
    what: {
      placeholder: "WHAT",
      help: "what to measure",
      choices: ["kernels", "train", "decode"],
    },
  },
  flags: {},
  examples: [
    { command: "hadal bench kernels", does: "medians, with their share of the measured peak" },
    { command: "hadal bench decode --json", does: "tokens per second, as one JSON array" },
  ],
} as const;
