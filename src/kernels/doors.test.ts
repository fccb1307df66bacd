/**
 * @file What kernels refuse at their doors: numbers that unchecked code would follow out of its
 * operands.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import type { Device } from "../device/device.ts";
import { Arena } from "../tensor/arena.ts";
import { makeTensor, sliceColumns, sliceRows, type Tensor } from "../tensor/tensor.ts";
import { fillFrom } from "../tensor/view.ts";
import { openCpuDevice } from "./cpu.ts";
import { planDispatch } from "./dispatch/contract.ts";
import { combineRows, gatherRows, scatterAddRows, scatterRows } from "./gather/contract.ts";
import { groupedMatmul } from "./grouped-matmul/contract.ts";
import { matmul } from "./matmul/contract.ts";
import { rope } from "./rope/contract.ts";
import { type RoutingRule, routeBackward } from "./route/contract.ts";

let device: Device;
let arena: Arena;
before(async () => {
  device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  arena = new Arena(device.memory, "doors");
});
after(() => device[Symbol.asyncDispose]());

const zeros = (rows: number, columns: number): Tensor<"f32"> =>
  arena.allocateZeros("f32", [rows, columns]);

function integers(rows: number, values: readonly number[]): Tensor<"i32"> {
  const tensor = arena.allocate("i32", [rows, values.length / rows]);
  fillFrom(tensor, values);
  return tensor;
}

/** A kernel that follows an index of one column into a source of `rows` rows. */
const FOLLOWERS: Readonly<Record<string, (index: Tensor<"i32">, rows: number) => void>> = {
  gatherRows(index, rows) {
    gatherRows(device, { src: zeros(rows, 4), index, out: zeros(index.columns, 4) });
  },
  scatterAddRows(index, rows) {
    scatterAddRows(device, { x: zeros(index.columns, 4), index, out: zeros(rows, 4) });
  },
  scatterRows(index, rows) {
    scatterRows(device, { x: zeros(index.columns, 4), index, out: zeros(rows, 4) });
  },
  combineRows(index, rows) {
    combineRows(device, { src: zeros(rows, 4), index, out: zeros(1, 4) });
  },
  rope(positions, rows) {
    const [cosTable, sinTable] = [zeros(rows, 4), zeros(rows, 4)];
    const x = zeros(positions.columns, 4);
    rope(device, { x, positions, cosTable, sinTable, inverse: false });
  },
};

for (const [name, follow] of Object.entries(FOLLOWERS)) {
  describe(`${name} checks its indexes`, () => {
    it("and follows those that exist", () => follow(integers(1, [0, 2, 1]), 3));

    it("refuses every index into a source without rows", () => {
      assert.throws(() => follow(integers(1, [0]), 0), /indexes 0\.\.0 must lie in 0\.\.-1/);
    });

    it("refuses a negative one", () => {
      assert.throws(() => follow(integers(1, [2, -1, 0]), 3), /indexes -1\.\.2 must lie in 0\.\.2/);
    });

    it("refuses one beyond the last row", () => {
      assert.throws(() => follow(integers(1, [1, 3]), 3), /indexes 1\.\.3 must lie in 0\.\.2/);
    });
  });
}

it("combineRows ignores what stands between the rows of a strided index", () => {
  const all = integers(2, [0, 1, 99, 1, 0, -7]);
  const index = sliceColumns(all, 0, 2);
  combineRows(device, { src: zeros(2, 4), index, out: zeros(2, 4) });
});

it("a gather of no rows from no rows is legal", () => {
  gatherRows(device, { src: zeros(0, 4), index: integers(1, []), out: zeros(0, 4) });
});

describe("a batch of products", () => {
  const multiply = (
    batch: { count?: number; aStride?: number; bStride?: number; outStride?: number },
    out = sliceRows(zeros(8, 12), 0, 2),
  ): void => {
    const all = { count: 2, aStride: 4, bStride: 4, outStride: 24, ...batch };
    const columns = out.columns;
    const [a, b] = [sliceRows(zeros(9, 3), 0, 2), sliceRows(zeros(9, columns), 0, 3)];
    matmul(device, { transposition: "nn", a, b, out, batch: all });
  };

  it("may stand one behind the other or side by side in rows", () => {
    multiply({});
    multiply({ aStride: 0, bStride: 0 });
    multiply({ outStride: 4, count: 3 }, sliceColumns(zeros(2, 12), 0, 4));
  });

  it("has a whole number of places, one or more", () => {
    for (const count of [0, -1, 1.5, Number.NaN]) {
      assert.throws(() => multiply({ count }), /batch count .* is 1 or more/);
    }
  });

  it("has whole strides that do not fall", () => {
    for (const name of ["aStride", "bStride", "outStride"]) {
      for (const stride of [-1, 0.5, Number.NaN]) {
        assert.throws(
          () => multiply({ [name]: stride }),
          new RegExp(`batch ${name} .* whole number`),
        );
      }
    }
  });

  it("refuses outputs that overlap", () => {
    assert.throws(() => multiply({ outStride: 0 }), /overlap/);
    assert.throws(() => multiply({ outStride: 23 }), /overlap/);
    const narrow = (): Tensor<"f32"> => sliceColumns(zeros(2, 12), 0, 4);
    assert.throws(() => multiply({ outStride: 3 }, narrow()), /overlap/);
    assert.throws(() => multiply({ outStride: 4, count: 4 }, narrow()), /overlap/);
  });
});

describe("groupedMatmul", () => {
  const multiply = (offsets: Tensor): void =>
    groupedMatmul(device, {
      transposition: "nn",
      a: zeros(4, 3),
      b: zeros(6, 5),
      out: zeros(4, 5),
      offsets: offsets as Tensor<"i32">,
    });

  it("wants its offsets in one row of i32", () => {
    multiply(integers(1, [0, 1, 4]));
    assert.throws(() => multiply(zeros(1, 3)), /offsets is f32; allowed: i32/);
    assert.throws(() => multiply(integers(2, [0, 1, 4, 0, 1, 4])), /offsets is 2×3, not 1×3/);
  });

  it("refuses offsets that fall, start late or end beyond the rows", () => {
    assert.throws(() => multiply(integers(1, [0, 3, 2])), /offsets fall at group 1/);
    assert.throws(() => multiply(integers(1, [1, 2, 4])), /start at 1/);
    assert.throws(() => multiply(integers(1, [0, 1, 5])), /end at 5, beyond the 4 rows/);
  });
});

describe("a choice of experts", () => {
  const plan = (choice: Tensor<"i32">): void => {
    const numRows = choice.rows * choice.columns;
    planDispatch(device, {
      choice,
      offsets: arena.allocate("i32", [1, 4]),
      tokenOfRow: arena.allocate("i32", [1, numRows]),
      rowOfChoice: arena.allocate("i32", [choice.rows, choice.columns]),
    });
  };
  const rule: RoutingRule = {
    numExperts: 3,
    numChosen: 2,
    scoring: "sigmoid",
    numGroups: 1,
    numChosenGroups: 1,
    groupScore: "max",
    normalise: true,
    routedScale: 1,
  };
  const backward = (choice: Tensor<"i32">): void =>
    routeBackward(device, {
      rule,
      scores: zeros(2, 3),
      choice,
      dWeight: zeros(2, 2),
      dLogits: zeros(2, 3),
    });

  for (const [name, run] of [
    ["planDispatch", plan],
    ["routeBackward", backward],
  ] as const) {
    it(`is checked by ${name}`, () => {
      run(integers(2, [0, 1, 2, 0]));
      assert.throws(
        () => run(integers(2, [0, 1, 3, 0])),
        /choice: indexes 0\.\.3 must lie in 0\.\.2/,
      );
      assert.throws(() => run(integers(2, [0, -1, 2, 0])), /choice: indexes -1\.\.2/);
    });
  }
});

it("an operand in another device's memory is refused", async () => {
  await using other = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  const offset = other.memory.reserve(64);
  const foreign = makeTensor(other.memory, "f32", [1, 4], offset);
  const index = integers(1, [0]);
  assert.throws(
    () => gatherRows(device, { src: foreign, index, out: zeros(1, 4) }),
    /this device's memory/,
  );
});
