/** @file What `hadal complete` takes. */

export const complete = {
  name: "complete",
  summary: "continue a text, or fill the gap between two",
  usage: "--model PATH [--prefix TEXT | --file F --line N] [--suffix TEXT] [flags]",
  flags: {
    model: {
      kind: "text",
      placeholder: "PATH",
      help: "a run folder or a checkpoint",
      required: true,
    },
    weights: {
      kind: "text",
      placeholder: "FORMAT",
      help: "keep weights as f32, bf16, fp8, int8, int4, int4:g64a…; as stored if left out",
    },
    prefix: { kind: "text", placeholder: "TEXT", help: "the text to continue" },
    file: {
      kind: "text",
      placeholder: "F",
      help: "take the text before --line as prefix, and the text after it as suffix",
    },
    line: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      help: "the line of --file to write, counted from 1",
    },
    suffix: {
      kind: "text",
      placeholder: "TEXT",
      help: "the text after the gap; with it, the model fills in the middle",
    },
    "max-tokens": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      help: "the most tokens to write",
      default: 128,
    },
    temperature: {
      kind: "number",
      placeholder: "T",
      least: 0,
      help: "how freely to choose; 0 always takes the likeliest token",
      default: 0,
    },
    "top-p": {
      kind: "number",
      placeholder: "P",
      above: 0,
      most: 1,
      help: "choose among the likeliest tokens that together have this probability",
      default: 1,
    },
    "top-k": {
      kind: "number",
      placeholder: "K",
      whole: true,
      least: 0,
      help: "choose among the K likeliest tokens; 0 among all",
      default: 0,
    },
    "min-p": {
      kind: "number",
      placeholder: "P",
      least: 0,
      most: 1,
      help: "leave out tokens less likely than this share of the likeliest one",
      default: 0,
    },
    stop: {
      kind: "list",
      placeholder: "TEXT",
      help: "end before this text",
    },
    seed: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      help: "the same seed gives the same text",
      default: 1,
    },
  },
  atMostOneOf: [
    ["prefix", "file"],
    ["suffix", "file"],
  ],
  examples: [
    {
      command: "hadal complete --model runs/first --prefix 'export interface'",
      does: "continues a text",
    },
    {
      command: "hadal complete --model runs/first --file src/app.ts --line 12",
      does: "writes line 12 from what stands above and below it",
    },
  ],
} as const;
