/** @file What `hadal serve` takes. */

export const serve = {
  name: "serve",
  summary: "answer OpenAI's, DeepSeek's and Anthropic's clients over HTTP",
  usage: "--model [NAME=]PATH [flags]",
  flags: {
    model: {
      kind: "list",
      placeholder: "[NAME=]PATH",
      help: "a run folder or a checkpoint, and what clients call it; may be repeated",
      required: true,
    },
    weights: {
      kind: "text",
      placeholder: "FORMAT",
      help: "keep weights as f32, bf16, fp8, int8, int4, int4:g64a…; as stored if left out",
    },
    alias: {
      kind: "list",
      placeholder: "ALIAS=NAME",
      help: "another name of a model; ALIAS may end in * (claude*=first); may be repeated",
    },
    host: {
      kind: "text",
      placeholder: "ADDRESS",
      help: "the address to listen on; 0.0.0.0 for all, which wants --keys",
      default: "127.0.0.1",
    },
    port: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      most: 65535,
      help: "the port to listen on; 0 for one that is free",
      default: 8080,
    },
    keys: {
      kind: "text",
      placeholder: "FILE",
      help: "API keys, one a line (NAME KEY); every route but /, /health and /ready then needs one",
    },
    "requests-per-minute": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      help: "the most requests of each key in a minute; 0 for no limit",
      default: 0,
    },
    "max-requests": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      help: "the most requests that run or wait at once; more get 503",
      default: 256,
    },
    "allow-host": {
      kind: "list",
      placeholder: "NAME",
      help: "a Host to admit beside the loopback names; may be repeated",
    },
    "allow-origin": {
      kind: "list",
      placeholder: "ORIGIN",
      help: "an origin whose pages may use the server (CORS); may be repeated",
    },
    role: {
      kind: "text",
      placeholder: "ROLE",
      choices: ["both", "split"],
      help: "both: one engine; split: one reads prompts, another decodes, each with the weights",
      default: "both",
    },
    "prefix-cache-dir": {
      kind: "text",
      placeholder: "FOLDER",
      help: "where prefixes of prompts are kept for later runs; else the user's cache folder",
    },
    "prefix-cache-disk-bytes": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 0,
      help: "the most bytes of that folder; 0 keeps prefixes in memory alone",
      default: 4_294_967_296,
    },
    "drain-seconds": {
      kind: "number",
      placeholder: "N",
      least: 0,
      help: "how long running requests may go on after SIGTERM or Ctrl-C",
      default: 30,
    },
  },
  examples: [
    { command: "hadal serve --model runs/first", does: "serves a run's last checkpoint as first" },
    {
      command: "hadal serve --model small=runs/a --model large=runs/b --alias claude*=large",
      does: "serves two models, one of them under every name that begins with claude",
    },
  ],
} as const;
