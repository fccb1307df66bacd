/**
 * @file The WebAssembly block core against the plain sum: ragged shapes, borders, order of
 * summation, NaN.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../base/random.ts";
import { WasmFunction } from "../../codegen/wasm/function.ts";
import { assembleModule, instantiate } from "../../codegen/wasm/module.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import type { ThreadContext } from "../../device/program.ts";
import { fromBf16, roundToBf16, toBf16 } from "../../numerics/bf16.ts";
import { type BlockMultiplier, TRANSPOSITIONS, type Transposition } from "./block-multiplier.ts";
import { createWasmMultiplier, wasmMultiplierRefusal } from "./wasm.ts";
import { assembleMatmulCore, type WasmInputDType } from "./wasm-core.ts";

const memory = CpuMemory.create(null);
const reserve = (byteLength: number) => ({ byteOffset: memory.reserve(byteLength), byteLength });
const context: ThreadContext = {
  memory,
  threadIndex: 0,
  scratch: reserve(2 ** 20),
  argumentBlock: reserve(512),
  native: null,
};
const BLOCK_BYTES = 2 ** 20;
const blocks = { a: reserve(BLOCK_BYTES), b: reserve(BLOCK_BYTES), out: reserve(BLOCK_BYTES) };
const POISON = 0x7fc0dead;

interface Matrix {
  readonly byteOffset: number;
  readonly stride: number;
  readonly dtype: WasmInputDType;
}

const bytesOf = (dtype: WasmInputDType): number => (dtype === "f32" ? 4 : 2);

function read({ byteOffset, stride, dtype }: Matrix, row: number, column: number): number {
  const index = byteOffset / bytesOf(dtype) + row * stride + column;
  return dtype === "f32" ? memory.f32[index]! : fromBf16(memory.u16[index]!);
}

function write(matrix: Matrix, row: number, column: number, value: number): void {
  const index = matrix.byteOffset / bytesOf(matrix.dtype) + row * matrix.stride + column;
  if (matrix.dtype === "f32") memory.f32[index] = value;
  else memory.u16[index] = toBf16(value);
}

interface Product {
  readonly name: string;
  readonly transposition: Transposition;
  readonly shape: readonly [m: number, n: number, k: number];
  readonly a: Matrix;
  readonly b: Matrix;
  readonly out: Matrix;
}

/**
 * Random operands with ragged strides; `atEnd` puts that operand's last element at the memory's
 * end.
 */
function makeProduct(
  random: Random,
  variant: { transposition: Transposition; dtype: WasmInputDType },
  shape: readonly [number, number, number],
  atEnd?: "a" | "b",
): Product {
  const { transposition, dtype } = variant;
  const [m, n, k] = shape;
  const place = (name: "a" | "b" | "out", rows: number, columns: number): Matrix => {
    const type = name === "out" ? "f32" : dtype;
    const stride = columns + random.below(5);
    const span = (Math.max(rows - 1, 0) * stride + columns) * bytesOf(type);
    const inside = blocks[name].byteOffset + random.below(40) * bytesOf(type);
    const matrix = {
      byteOffset: name === atEnd ? memory.byteLength - span : inside,
      ...{ stride, dtype: type },
    } as const;
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const value = random.uniform() * 2 - 1;
        write(matrix, row, column, dtype === "bf16" ? roundToBf16(value) : value);
      }
    }
    return matrix;
  };
  const a = transposition === "tn" ? place("a", k, m) : place("a", m, k);
  const b = transposition === "nt" ? place("b", n, k) : place("b", k, n);
  memory.i32.fill(POISON, blocks.out.byteOffset / 4, (blocks.out.byteOffset + BLOCK_BYTES) / 4);
  const out = place("out", 0, n);
  return { name: `${transposition}.${dtype} ${m}×${n}×${k}`, transposition, shape, a, b, out };
}

function run(
  multiply: BlockMultiplier,
  { transposition, shape, a, b, out }: Product,
  options: { accumulate?: boolean; part?: readonly [number, number, number, number] } = {},
): void {
  const [row, column, m, n] = options.part ?? [0, 0, shape[0], shape[1]];
  const aStart = row * (transposition === "tn" ? 1 : a.stride) * bytesOf(a.dtype);
  const bStart = column * (transposition === "nt" ? b.stride : 1) * bytesOf(b.dtype);
  const outStart = (row * out.stride + column) * 4;
  multiply(
    ...([a.byteOffset + aStart, a.stride, b.byteOffset + bStart, b.stride] as const),
    ...([out.byteOffset + outStart, out.stride, m, n, shape[2]] as const),
    options.accumulate === true,
  );
}

function outWords(): Int32Array {
  const { byteOffset } = blocks.out;
  return memory.i32.slice(byteOffset / 4, (byteOffset + BLOCK_BYTES) / 4);
}

function assertProduct(product: Product, before = 0): void {
  const { name, transposition, shape, a, b, out } = product;
  const [m, n, k] = shape;
  const words = outWords();
  for (let row = 0; row < m; row++) {
    for (let column = 0; column < n; column++) {
      let [sum, magnitude] = [before, Math.abs(before)];
      for (let d = 0; d < k; d++) {
        const left = transposition === "tn" ? read(a, d, row) : read(a, row, d);
        const right = transposition === "nt" ? read(b, column, d) : read(b, d, column);
        sum += left * right;
        magnitude += Math.abs(left * right);
      }
      const actual = read(out, row, column);
      const isNear = Math.abs(actual - sum) <= 1e-6 * magnitude;
      assert.ok(isNear, `${name} [${row}, ${column}]: ${actual} is not ${sum}`);
      words[(out.byteOffset - blocks.out.byteOffset) / 4 + row * out.stride + column] = POISON;
    }
  }
  const stray = words.findIndex((word) => word !== POISON);
  assert.equal(stray, -1, `${name} wrote outside its output, at word ${stray}`);
}

const SHAPES = [
  ...([
    [1, 1, 1],
    [1, 33, 7],
    [5, 8, 64],
    [6, 9, 5],
    [7, 16, 16],
    [13, 31, 17],
  ] as const),
  ...([
    [24, 65, 129],
    [3, 530, 65],
    [200, 17, 31],
    [12, 15, 513],
    [1, 100, 1100],
  ] as const),
];

for (const dtype of ["f32", "bf16"] as const) {
  for (const transposition of TRANSPOSITIONS) {
    const variant = { transposition, dtype };
    const name = `${transposition}.${dtype} in WebAssembly`;
    const make = (): BlockMultiplier =>
      createWasmMultiplier(transposition, dtype, context, context.scratch);

    test(`${name} equals the plain sum, adds when asked, and touches nothing else`, () => {
      assert.equal(wasmMultiplierRefusal(transposition, dtype, context), null);
      const multiply = make();
      const random = new Random(1, name);
      for (const shape of SHAPES) {
        for (const atEnd of [undefined, "a", "b"] as const) {
          const product = makeProduct(random, variant, shape, atEnd);
          run(multiply, product);
          assertProduct(product);
        }
        const product = makeProduct(random, variant, shape);
        for (let row = 0; row < shape[0]; row++) {
          for (let column = 0; column < shape[1]; column++) write(product.out, row, column, 3);
        }
        run(multiply, product, { accumulate: true });
        assertProduct(product, 3);
      }
    });

    test(`${name} sums in an order that depends on the depth alone`, () => {
      const multiply = make();
      const random = new Random(2, name);
      for (const k of [0, 3, 64, 513, 700]) {
        const product = makeProduct(random, variant, [41, 55, k]);
        run(multiply, product);
        const whole = outWords();
        if (k === 0) assertProduct(product);
        memory.i32.fill(
          POISON,
          blocks.out.byteOffset / 4,
          blocks.out.byteOffset / 4 + BLOCK_BYTES / 4,
        );
        for (let row = 0; row < 41; row += 9) {
          for (let column = 0; column < 55; column += 13) {
            const part = [row, column, Math.min(9, 41 - row), Math.min(13, 55 - column)] as const;
            run(multiply, product, { part });
          }
        }
        assert.deepEqual(outWords(), whole, `${name}, depth ${k}`);
      }
    });
  }
}

test("NaN and infinity reach their own elements alone", () => {
  const variant = { transposition: "nt", dtype: "bf16" } as const;
  const product = makeProduct(new Random(3, "specials"), variant, [14, 35, 37]);
  write(product.a, 3, 36, Number.NaN);
  write(product.b, 34, 5, Infinity);
  run(createWasmMultiplier("nt", "bf16", context, context.scratch), product);
  for (let row = 0; row < 14; row++) {
    for (let column = 0; column < 35; column++) {
      const value = read(product.out, row, column);
      if (row === 3) assert.ok(Number.isNaN(value), `[${row}, ${column}]`);
      else assert.equal(Number.isFinite(value), column !== 34, `[${row}, ${column}] is ${value}`);
    }
  }
});

test("without relaxed SIMD the core is a valid module too", () => {
  for (const dtype of ["f32", "bf16"] as const) {
    assert.ok(WebAssembly.validate(assembleMatmulCore({ dtype, relaxedSimd: false })));
  }
});

test("a read beyond the memory traps: the border tests would see one", () => {
  const peek = new WasmFunction(["i32"]);
  peek.get(0).memory("v128.load").op("drop");
  const { peek: call } = instantiate<"peek">(assembleModule({ peek }), memory.wasm);
  call(memory.byteLength - 16);
  assert.throws(() => call(memory.byteLength - 15), /out of bounds/);
});
