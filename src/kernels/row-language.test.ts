/**
 * @file What the vector language promises, on every target: rules that the kernels' own tests do
 * not single out.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import type { RowProgram } from "../codegen/vector/program.ts";
import { rowProgram } from "../codegen/vector/recorder.ts";
import { CpuMemory } from "../device/cpu/memory.ts";
import { createNativeRuntime } from "../device/cpu/native.ts";
import type { ThreadContext } from "../device/program.ts";
import { toBf16 } from "../numerics/bf16.ts";
import { rowImplementations } from "./row-kernel.ts";
import { gathered, PARTIAL, perRow, row, vector } from "./row-operands.ts";

const native = createNativeRuntime();
const memory = CpuMemory.create(native.runtime);
const span = (byteLength: number) => ({ byteOffset: memory.reserve(byteLength), byteLength });
const context: ThreadContext = {
  memory,
  threadIndex: 0,
  scratch: span(4096),
  argumentBlock: span(4096),
  native: native.runtime,
};
const TARGETS = native.runtime === null ? (["wasm"] as const) : (["wasm", "x64"] as const);

interface Launch {
  readonly rows: number;
  readonly columns: number;
  readonly perTask?: number;
  readonly numTasks?: number;
  /** Byte offset and stride of each operand. */
  readonly operands: readonly (readonly [number, number])[];
  readonly scalars?: readonly number[];
}

/** Runs the program on each target and hands the target's name to `verify`. */
function onEveryTarget(
  program: RowProgram,
  prepare: () => Launch,
  verify: (target: string) => void,
): void {
  for (const implementation of rowImplementations(() => program)) {
    if (!(TARGETS as readonly string[]).includes(implementation.target)) continue;
    const { rows, columns, perTask = rows, numTasks = 1, operands, scalars = [] } = prepare();
    const slots = Float64Array.of(rows, columns, perTask, ...operands.flat(), ...scalars);
    implementation.create("f32", context)(slots, 0, numTasks);
    verify(implementation.target);
  }
}

const X = memory.reserve(65536);
const Y = memory.reserve(65536);
const OUT = memory.reserve(65536);

function f32(byteOffset: number, length: number): Float32Array {
  return new Float32Array(memory.f32.buffer, byteOffset, length);
}

function i32(byteOffset: number, length: number): Int32Array {
  return new Int32Array(memory.f32.buffer, byteOffset, length);
}

test("min and max take the second operand where either is NaN, on every target", () => {
  const program = rowProgram({
    name: "extremes",
    operands: { x: row(), y: row(), out: row() },
    scalars: [],
    body(v, { x, y, out }) {
      v.columns(() => {
        const sum = v.add(v.min(v.load(x), v.load(y)), v.max(v.load(x), v.load(y)));
        v.store(out, v.select(v.equal(sum, sum), sum, v.max(v.load(x), v.load(y))));
      });
    },
  });
  const xs = [1, 2, NaN, 3, NaN, -5, 0, NaN, 7, 8, 9, 1, 2, 3, 4, 5, NaN];
  const ys = [2, 1, 4, NaN, NaN, -6, 1, 0, 7, 9, 8, 2, 1, 4, 3, 6, 2];
  onEveryTarget(
    program,
    () => {
      f32(X, 17).set(xs);
      f32(Y, 17).set(ys);
      return {
        rows: 1,
        columns: 17,
        operands: [
          [X, 17],
          [Y, 17],
          [OUT, 17],
        ],
      };
    },
    (target) => {
      const expected = xs.map((x, i) => {
        const y = ys[i]!;
        const sum = Math.fround((x < y ? x : y) + (x > y ? x : y));
        return Number.isNaN(sum) ? (x > y ? x : y) : sum;
      });
      assert.deepEqual([...f32(OUT, 17)], expected, target);
    },
  );
});

test("a row's maximum ignores NaN, its sum does not; neither sees beyond the last column", () => {
  const program = rowProgram({
    name: "reductions",
    operands: { x: row(), top: perRow(), total: perRow() },
    scalars: [],
    body(v, { x, top, total }) {
      const found = v.columns(() => ({ top: v.rowMax(v.load(x)), total: v.sum(v.load(x)) }));
      v.storePerRow(top, found.top);
      v.storePerRow(total, found.total);
    },
  });
  for (const columns of [1, 5, 16, 63, 67, 130]) {
    onEveryTarget(
      program,
      () => {
        f32(X, 300).fill(1e9);
        f32(X, columns).fill(-2);
        f32(X + 4 * 150, columns).fill(-3);
        memory.f32[X / 4 + 150] = NaN;
        return {
          rows: 2,
          columns,
          operands: [
            [X, 150],
            [OUT, 1],
            [OUT + 64, 1],
          ],
        };
      },
      (target) => {
        const top = columns === 1 ? -Infinity : -3;
        assert.deepEqual([...f32(OUT, 2)], [-2, top], `${target} ${columns}`);
        assert.deepEqual([...f32(OUT + 64, 2)], [-2 * columns, NaN], `${target} ${columns}`);
      },
    );
  }
});

test("bf16 stores the same bits as numerics, for every kind of number and NaN", () => {
  const program = rowProgram({
    name: "narrow",
    operands: { x: row(), out: row("bf16") },
    scalars: [],
    body(v, { x, out }) {
      v.columns(() => v.store(out, v.load(x)));
    },
  });
  const count = 4099;
  const random = new Random(5);
  const words = Uint32Array.from({ length: count }, () => random.uint32());
  words.set([0, 0x80000000, 1, 0x007fffff, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7f800001]);
  words.set([0xff800001, 0x7fffffff, 0xffffffff, 0x3f808000, 0x3f818000, 0x3f807fff], 8);
  const expected = [...new Float32Array(words.buffer)].map((value, i) =>
    Number.isNaN(value) ? (words[i]! >>> 16) | 0x40 : toBf16(value),
  );
  onEveryTarget(
    program,
    () => {
      new Uint32Array(memory.f32.buffer, X, count).set(words);
      return {
        rows: 1,
        columns: count,
        operands: [
          [X, count],
          [OUT + 2, count],
        ],
      };
    },
    (target) => {
      const codes = [...new Uint16Array(memory.f32.buffer, OUT + 2, count)];
      assert.deepEqual(codes, expected, target);
    },
  );
});

test("rows are numbered over all tasks, and integer products keep their low 32 bits", () => {
  const program = rowProgram({
    name: "numbers",
    operands: { out: row("i32") },
    scalars: [],
    body(v, { out }) {
      const start = v.integerMul(v.rowIndex(), v.integer(0x735a2d97));
      v.columns(() => v.storeBits(out, v.integerAdd(start, v.columnIndex())));
    },
  });
  const [rows, columns, perTask] = [11, 37, 3];
  onEveryTarget(
    program,
    () => ({ rows, columns, perTask, numTasks: 4, operands: [[OUT, columns]] }),
    (target) => {
      const expected = Array.from({ length: rows * columns }, (_, at) => {
        const number = Math.floor(at / columns);
        return (Math.imul(number, 0x735a2d97) + at - number * columns) | 0;
      });
      assert.deepEqual([...i32(OUT, rows * columns)], expected, target);
    },
  );
});

test("bytes, integers and column numbers: raw bits go in and out unchanged", () => {
  const program = rowProgram({
    name: "integers",
    operands: { codes: row("u8"), words: row("i32"), out: row("i32"), bytes: row("u8") },
    scalars: [],
    body(v, { codes, words, out, bytes }) {
      v.columns(() => {
        const code = v.loadBits(codes);
        const word = v.loadBits(words);
        const mixed = v.xor(v.integerSub(v.shiftLeft(code, 3), word), v.columnIndex());
        const large = v.select(v.integerLess(word, code), v.or(mixed, v.integer(1)), mixed);
        v.storeBits(out, v.integerAdd(large, v.shiftRightSigned(word, 7)));
        v.storeBits(bytes, v.integerAdd(code, v.roundToInteger(v.toFloat(v.shiftRight(word, 9)))));
      });
    },
  });
  const random = new Random(6);
  for (const columns of [1, 7, 16, 37, 100]) {
    const codes = Uint8Array.from({ length: columns }, () => random.below(256));
    const words = Int32Array.from({ length: columns }, () => random.below(2 ** 24) - 2 ** 23);
    onEveryTarget(
      program,
      () => {
        new Uint8Array(memory.f32.buffer, X + 3, columns).set(codes);
        i32(Y, columns).set(words.map((word) => word & 0xffffff));
        memory.u8.fill(0xaa, OUT, OUT + 4096);
        const operands = [
          [X + 3, 0],
          [Y, 0],
          [OUT, 0],
          [OUT + 2049, 0],
        ] as const;
        return { rows: 1, columns, operands };
      },
      (target) => {
        for (const [i, code] of codes.entries()) {
          const word = words[i]! & 0xffffff;
          let expected = (((code << 3) - word) ^ i) | 0;
          if (word < code) expected |= 1;
          assert.equal(i32(OUT, columns)[i], (expected + (word >> 7)) | 0, `${target} [${i}]`);
          assert.equal(memory.u8[OUT + 2049 + i], (code + (word >>> 9)) & 255, `${target} [${i}]`);
        }
        assert.equal(memory.u8[OUT + 2049 + columns], 0xaa, target);
        assert.equal(memory.u8[OUT + 4 * columns], 0xaa, target);
      },
    );
  }
});

test("an absent row loads as zeros and is never written; limits are clamped to the columns", () => {
  const program = rowProgram({
    name: "absent",
    operands: { source: gathered(), index: perRow("i32"), ends: perRow("i32"), out: row() },
    scalars: [],
    body(v, { source, index, ends, out }) {
      v.locate(source, index);
      v.columns(() => v.store(out, v.add(v.load(source), v.float(1))), { end: ends });
      v.columns(() => v.store(out, v.float(-1)), { start: ends });
      v.columns(() => v.store(source, v.float(7)), { where: source, end: ends });
    },
  });
  const columns = 21;
  const indexes = [1, -1, 0, -7, 1];
  const ends = [5, 21, -3, 99, 0];
  onEveryTarget(
    program,
    () => {
      f32(X, 4 * columns).fill(3);
      i32(Y, 5).set(indexes);
      i32(Y + 256, 5).set(ends);
      const operands = [
        [X + 4 * columns, columns],
        [Y, 1],
        [Y + 256, 1],
        [OUT, columns],
      ] as const;
      return { rows: 5, columns, operands };
    },
    (target) => {
      for (const [r, index] of indexes.entries()) {
        const end = Math.max(0, Math.min(columns, ends[r]!));
        for (let c = 0; c < columns; c++) {
          const present = r > 0 && index === 1 && c < 5 ? 7 : 3;
          const expected = c < end ? (index < 0 ? 1 : present + 1) : -1;
          assert.equal(f32(OUT, 5 * columns)[r * columns + c], expected, `${target} [${r}, ${c}]`);
        }
      }
      const source = [...f32(X, 4 * columns)];
      const written = source.flatMap((value, i) => (value === 7 ? [i] : []));
      assert.deepEqual(
        written,
        [0, 1, 2, 3, 4].map((c) => 2 * columns + c),
        target,
      );
    },
  );
});

test("single elements go by index, and an index that is no column is passed over", () => {
  const program = rowProgram({
    name: "elements",
    operands: { x: row(), index: perRow("i32"), found: perRow() },
    scalars: [],
    body(v, { x, index, found }) {
      v.storePerRow(found, v.loadElement(x, index));
      v.storeElement(x, index, v.float(9));
    },
  });
  onEveryTarget(
    program,
    () => {
      f32(X, 30).set(Array.from({ length: 30 }, (_, i) => i + 1));
      i32(Y, 5).set([0, 4, -1, 5, 2 ** 31 - 1]);
      return {
        rows: 5,
        columns: 5,
        operands: [
          [X, 6],
          [Y, 1],
          [OUT, 1],
        ],
      };
    },
    (target) => {
      assert.deepEqual([...f32(OUT, 5)], [1, 11, 0, 0, 0], target);
      const nines = [...f32(X, 30)].flatMap((value, i) => (value === 9 ? [i] : []));
      assert.deepEqual(nines, [0, 8, 10], target);
    },
  );
});

test("partial sums belong to their task: how tasks are shared changes no bit", () => {
  const program = rowProgram({
    name: "partials",
    operands: { x: row(), gain: vector(), sums: PARTIAL },
    scalars: ["scale"],
    body(v, { x, gain, sums }, { scale }) {
      v.columns(() => {
        v.store(sums, v.fma(v.mul(v.load(x), scale), v.load(gain), v.load(sums)));
      });
    },
  });
  const random = new Random(7);
  const values = Float32Array.from({ length: 10 * 300 }, () => random.normal());
  for (const implementation of rowImplementations(() => program)) {
    if (!(TARGETS as readonly string[]).includes(implementation.target)) continue;
    const body = implementation.create("f32", context);
    f32(X, 3000).set(values);
    f32(Y, 300).fill(0.5);
    const slots = Float64Array.of(10, 300, 3, X, 300, Y, 0, OUT, 300, 2);
    const results = [
      [[0, 4]],
      [
        [2, 4],
        [0, 2],
      ],
      [
        [3, 4],
        [0, 1],
        [1, 2],
        [2, 3],
      ],
    ].map((calls) => {
      f32(OUT, 1200).fill(NaN);
      for (const [first, end] of calls) body(slots, first!, end!);
      return f32(OUT, 1200).slice();
    });
    assert.deepEqual(results[1], results[0], implementation.target);
    assert.deepEqual(results[2], results[0], implementation.target);
    const last = values.subarray(2700);
    assert.deepEqual(results[0]!.subarray(900), last, implementation.target);
  }
});

test("a body that breaks the language's rules is refused when it is recorded", () => {
  const record = (body: Parameters<typeof rowProgram>[0]["body"]): RowProgram =>
    rowProgram({ name: "broken", operands: { x: row(), table: gathered() }, scalars: [], body });
  assert.throws(() => record((v) => void v.load(0)), /load only inside a column loop/);
  assert.throws(() => record((v) => v.columns(() => void v.load(1))), /locate comes before/);
  assert.throws(
    () => record((v) => v.columns(() => v.columns(() => undefined))),
    /column loops do not nest/,
  );
  assert.throws(
    () => record((v) => v.columns(() => v.store(1, v.float(0)))),
    /a gathered store stands in a loop with/,
  );
});

test("more live values than registers are refused by name, not spilled", {
  skip: !native.runtime,
}, () => {
  const program = rowProgram({
    name: "crowded",
    operands: { x: row(), out: row() },
    scalars: [],
    body(v, { x, out }) {
      v.columns(() => {
        const many = Array.from({ length: 33 }, () => v.load(x));
        v.store(
          out,
          many.reduce((sum, value) => v.add(value, sum)),
        );
      });
    },
  });
  const [x64] = rowImplementations(() => program);
  assert.throws(() => x64!.create("f32", context), /crowded: more than 32 values are live at once/);
});
