/** @file Loops that stand for a kernel's memory move all of it, and change nothing that is read. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { Arena } from "../../tensor/arena.ts";
import { sliceColumns } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { normal } from "./kernel-case.ts";
import { trafficBytes, trafficLoops } from "./traffic.ts";

/** More than a task, and a ragged end. */
const [ROWS, COLUMNS] = [11, 37];

for (const kernels of ["auto", "wasm"] as const) {
  test(`every element is written, and what is read keeps its bits: ${kernels}`, async () => {
    await using device = await openCpuDevice({ numThreads: 1, kernels });
    const arena = new Arena(device.memory, "traffic");
    const both = normal(arena, [ROWS, 2 * COLUMNS]);
    const half = sliceColumns(both, COLUMNS, 2 * COLUMNS);
    const changed = normal(arena, [ROWS, COLUMNS]);
    const kept = [both, changed].map((tensor) => Float32Array.from(view(tensor)));
    const outs = (["f32", "bf16", "e4m3"] as const).map((dtype) =>
      arena.allocate(dtype, [ROWS, COLUMNS]),
    );
    const traffic = { reads: [changed, half], writes: [changed, ...outs] };
    assert.equal(trafficBytes(traffic), ROWS * COLUMNS * (4 + 4 + 4 + 4 + 2 + 1));
    for (const run of trafficLoops(device, traffic)) {
      for (const out of outs) view(out).fill(out.dtype === "f32" ? Number.NaN : 0xaa);
      run();
      const [f32, bf16, e4m3] = outs.map((out) => view(out));
      const bits = new Uint32Array(Float32Array.from(view(changed)).buffer);
      assert.deepEqual(f32, view(changed));
      assert.deepEqual(
        [...bf16!],
        [...bits].map((word) => word & 0xffff),
      );
      assert.deepEqual(
        [...e4m3!],
        [...bits].map((word) => word & 0xff),
      );
      assert.deepEqual(
        [both, changed].map((tensor) => Float32Array.from(view(tensor))),
        kept,
      );
    }
  });
}
