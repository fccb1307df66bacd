/** @file What `hadal export` takes. */

export const exportModel = {
  name: "export",
  summary: "write a model in another program's format, or with smaller weights",
  usage: "--model PATH --format NAME --out PATH [--dtype NAME | --weights FORMAT]",
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
      choices: ["gguf", "huggingface"],
      help: "what to write: a file for llama.cpp, or a checkpoint in the Hugging Face layout",
      required: true,
    },
    out: {
      kind: "text",
      placeholder: "PATH",
      help: "the new file (gguf), or the folder (huggingface), new or empty, to write",
      required: true,
    },
    dtype: {
      kind: "text",
      placeholder: "NAME",
      choices: ["f32", "bf16", "f16", "q8_0", "q4_0"],
      help: "the precision of the matrices of a gguf file; bf16 if left out",
    },
    weights: {
      kind: "text",
      placeholder: "FORMAT",
      help: "what a checkpoint's weights are stored in: f32, bf16, fp8, int8, int4 or int4:g64a",
    },
  },
  atMostOneOf: [["dtype", "weights"]],
  examples: [
    {
      command: "hadal export --model runs/first --format gguf --out first.gguf",
      does: "one file that llama.cpp loads, tokenizer inside",
    },
    {
      command: "hadal export --model runs/a --format huggingface --weights int4 --out a4",
      does: "a smaller checkpoint, most weights in 4 bits, which every verb loads again",
    },
  ],
} as const;
