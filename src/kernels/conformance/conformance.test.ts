/**
 * @file Every implementation of every kernel against the reference, on one thread and on several.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../cpu.ts";
import { CONFORMANCE_CASES, ConformanceBench } from "./conformance.ts";

const SEED = Number(process.env["HADAL_TEST_SEED"] ?? Math.floor(Date.now() % 1e9));

/** Operands that most kernels have: one of so many stands at the end of the memory. */
const MOST_OPERANDS = 4;

for (const kernels of ["x64", "wasm"] as const) {
  for (const numThreads of [1, 3]) {
    describe(`kernels ${kernels} on ${numThreads} threads`, () => {
      let device: Device;
      let oracle: Device;
      let bench: ConformanceBench;
      before(async () => {
        device = await openCpuDevice({ kernels, numThreads });
        oracle = await openCpuDevice({ kernels: "reference", numThreads: 1 });
        bench = new ConformanceBench(device, oracle);
      });
      after(async () => {
        await device[Symbol.asyncDispose]();
        await oracle[Symbol.asyncDispose]();
      });
      const kernelNames = new Set(CONFORMANCE_CASES.map((testCase) => testCase.kernel));
      for (const kernel of kernelNames) {
        it(`${kernel} agrees with the reference and stays inside its operands`, () => {
          const cases = CONFORMANCE_CASES.filter((testCase) => testCase.kernel === kernel);
          for (const [number, testCase] of cases.entries()) {
            // With several threads, a different operand at the end of the memory each time.
            const endOperand = numThreads === 1 ? undefined : (number + SEED) % MOST_OPERANDS;
            assert.equal(bench.check(testCase, SEED, endOperand), null);
          }
        });
      }
    });
  }
}
