/** @file What `hadal export` takes. */

export const exportModel = {
  name: "export",
  summary: "write a model in another program's format",
  usage: "--model PATH --format gguf --out FILE [--dtype NAME]",
  flags: {
    model: {
      kind: "text",
      placeholder: "PATH",
      help: "a run folder or a checkpoint",
      required: true,
    },
    format: {
      kind: "text",
      placeholder: "NAME",
      choices: ["gguf"],
      help: "the format to write; llama.cpp reads gguf",
      required: true,
    },
    out: { kind: "text", placeholder: "FILE", help: "the file to write", required: true },
    dtype: {
      kind: "text",
      placeholder: "NAME",
      choices: ["f32", "bf16"],
      help: "the precision of the matrices",
      default: "bf16",
    },
  },
  examples: [
    {
      command: "hadal export --model runs/first --format gguf --out first.gguf",
      does: "one file that llama.cpp loads, tokenizer inside",
    },
  ],
} as const;
