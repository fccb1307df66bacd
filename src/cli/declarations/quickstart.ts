/** @file What `hadal quickstart` takes. */

export const quickstart = {
  name: "quickstart",
  summary:
    "learn a tokenizer and train the tiny preset on real code, complete with it and serve it",
  usage: "[--minutes N] [--data DIR] [--out FOLDER] [--no-serve]",
  flags: {
    minutes: {
      kind: "number",
      placeholder: "N",
      help: "steps for about this long at the first ones' speed; data, last evaluation not counted",
      above: 0,
      default: 2,
    },
    data: {
      kind: "text",
      placeholder: "DIR",
      help: "train on the text files of this folder, not on the installed declarations",
    },
    out: {
      kind: "text",
      placeholder: "FOLDER",
      help: "the run folder to write; without it, a new one in runs/",
    },
    ranks: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 64,
      help: "train over N ranks on threads, by DualPipe without --layout",
    },
    layout: {
      kind: "text",
      placeholder: "AXES",
      help: "pp=2,ep=2,dp=2: ranks of a pipeline, that share experts, that share the batch",
    },
    schedule: {
      kind: "text",
      placeholder: "NAME",
      choices: ["gpipe", "1f1b", "interleaved", "zb1p", "dualpipe", "dualpipev"],
      help: "the order of work in a pipeline; dualpipe if nothing says otherwise",
    },
    "no-serve": {
      kind: "switch",
      help: "end after the completions; so it does off a terminal, with --json and where CI is set",
    },
  },
  examples: [
    { command: "hadal quickstart", does: "two minutes on the .d.ts files that npm installed" },
    {
      command: "hadal quickstart --minutes 10 --data ./my-project",
      does: "ten minutes on your own code",
    },
  ],
} as const;
