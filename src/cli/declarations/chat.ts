/** @file What `hadal chat` takes. */

export const chat = {
  name: "chat",
  summary: "talk to a model in the terminal",
  usage: "--model PATH | --url ADDRESS [flags]",
  flags: {
    model: { kind: "text", placeholder: "PATH", help: "a run folder or a checkpoint" },
    weights: {
      kind: "text",
      placeholder: "FORMAT",
      help: "keep weights as f32, bf16, fp8, int8, int4, int4:g64a…; as stored if left out",
    },
    url: {
      kind: "text",
      placeholder: "ADDRESS",
      help: "a server that speaks OpenAI's chat API, such as http://127.0.0.1:8080",
    },
    name: {
      kind: "text",
      placeholder: "NAME",
      help: "the server's model; without it, the first that it lists",
    },
    system: { kind: "text", placeholder: "TEXT", help: "the system message" },
    thinking: { kind: "switch", help: "let the model think before it answers" },
    "max-tokens": {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      help: "the most tokens of an answer",
      default: 1024,
    },
    temperature: {
      kind: "number",
      placeholder: "T",
      least: 0,
      most: 2,
      help: "how freely to choose; 0 always takes the likeliest token",
      default: 0.7,
    },
  },
  atMostOneOf: [
    ["model", "url"],
    ["weights", "url"],
  ],
  examples: [
    { command: "hadal chat --model runs/first", does: "loads a model and talks to it" },
    {
      command: "hadal chat --url http://127.0.0.1:8080 --thinking",
      does: "talks to a server; HADAL_API_KEY holds its key, if it wants one",
    },
  ],
} as const;
