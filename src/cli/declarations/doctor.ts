/** @file What `hadal doctor` takes. */

export const doctor = {
  name: "doctor",
  summary: "say which kernels this machine gets and why, check them, measure them",
  usage: "",
  flags: {},
  examples: [
    { command: "hadal doctor", does: "the report; exit code 1 if a kernel disagrees" },
    {
      command: "HADAL_KERNELS=wasm hadal doctor --json",
      does: "the same for WebAssembly alone, as one JSON object",
    },
  ],
} as const;
