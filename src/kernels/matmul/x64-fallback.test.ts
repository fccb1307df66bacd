/** @file Processors without native code, as child processes whose features are hidden. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { describe, it } from "node:test";

const DEVICE = new URL("../cpu.ts", import.meta.url).href;

/**
 * A child with two threads multiplies 3·I by 5·I, in f32 and in bf16, and says which targets the
 * products run on.
 */
const SCRIPT = `(async () => {
  const { openCpuDevice } = await import("${DEVICE}");
  const device = await openCpuDevice({ numThreads: 2 });
  const [a, b, out] = [4096, 4096, 4096].map((bytes) => device.memory.reserve(bytes));
  const f32 = device.memory.f32;
  for (let i = 0; i < 32; i++) [f32[a / 4 + 33 * i], f32[b / 4 + 33 * i]] = [3, 5];
  device.launch("matmul/nn.f32", [1, 32, 32, 32, a, 32, 0, b, 32, 0, out, 32, 0, 0, 8, 8], 16);
  const sum = device.memory.f32.slice(out / 4, out / 4 + 1024).reduce((x, y) => x + y);
  const codes = device.memory.u16;
  codes.fill(0, a / 2, a / 2 + 1024);
  codes.fill(0, b / 2, b / 2 + 1024);
  for (let i = 0; i < 32; i++) [codes[a / 2 + 33 * i], codes[b / 2 + 33 * i]] = [0x4040, 0x40a0];
  device.launch("matmul/nn.bf16", [1, 32, 32, 32, a, 32, 0, b, 32, 0, out, 32, 0, 0, 8, 8], 16);
  const bf16Sum = device.memory.f32.slice(out / 4, out / 4 + 1024).reduce((x, y) => x + y);
  const targetOf = (key) => device.reports().find((report) => report.key === key).target;
  const targets = [targetOf("matmul/nn.f32"), targetOf("matmul/nn.bf16")];
  console.log(JSON.stringify({ sum, bf16Sum, targets, reason: device.nativeRefusal }));
  await device[Symbol.asyncDispose]();
})()`;

function runChild(environment: Record<string, string>): {
  sum: number;
  bf16Sum: number;
  /** Of the products in f32 and in bf16. */
  targets: readonly string[];
  reason: string;
} {
  const child = spawnSync(process.execPath, ["-e", SCRIPT], {
    env: { ...process.env, ...environment },
    encoding: "utf8",
  });
  assert.equal(child.signal, null, child.stderr);
  assert.equal(child.status, 0, child.stderr);
  return JSON.parse(child.stdout) as ReturnType<typeof runChild>;
}

describe("a processor that native code does not support", () => {
  for (const [name, environment, reason] of [
    ["without AVX-512", { HADAL_CPU_FEATURES: "none" }, /no AVX-512|needs x64/],
    ["with native code turned off", { HADAL_NATIVE: "0" }, /HADAL_NATIVE=0/],
  ] as const) {
    it(`multiplies all the same ${name}, on other targets`, () => {
      const answer = runChild(environment);
      assert.equal(answer.sum, 32 * 15);
      assert.equal(answer.bf16Sum, 32 * 15);
      assert.ok(!answer.targets.includes("x64"), answer.targets.join(", "));
      assert.match(answer.reason, reason);
    });
  }

  it("without bf16 instructions multiplies f32 and bf16 natively, where it can", () => {
    const answer = runChild({ HADAL_CPU_FEATURES: "avx512" });
    assert.equal(answer.sum, 32 * 15);
    assert.equal(answer.bf16Sum, 32 * 15);
    const target = answer.reason === "" ? "x64" : "wasm";
    assert.deepEqual(answer.targets, [target, target], answer.reason);
  });
});
