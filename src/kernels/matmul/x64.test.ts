import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import { createNativeRuntime } from "../../device/cpu/native.ts";
import type { ThreadContext } from "../../device/program.ts";
import { type BlockMultiplier, TRANSPOSITIONS, type Transposition } from "./block-multiplier.ts";
import { createX64Multiplier, x64MultiplierRefusal } from "./x64.ts";
import type { X64InputDType } from "./x64-pack.ts";

const { runtime, reason } = createNativeRuntime();
const memory = CpuMemory.create(runtime?.addressOf ?? null);
const SCRATCH_BYTES = 8 * 2 ** 20;
const context: ThreadContext = {
  memory,
  threadIndex: 0,
  scratch: { byteOffset: memory.reserve(SCRATCH_BYTES), byteLength: SCRATCH_BYTES },
  argumentBlock: { byteOffset: memory.reserve(512), byteLength: 512 },
  native: runtime,
};
const BLOCK_BYTES = 4 * 2 ** 20;
const blocks = {
  a: memory.reserve(BLOCK_BYTES),
  b: memory.reserve(BLOCK_BYTES),
  out: memory.reserve(BLOCK_BYTES),
};
const DTYPES = ["f32", "bf16"] as const;

const word = new Uint32Array(1);
const real = new Float32Array(word.buffer);

/** The nearest value that the dtype holds (bf16: nearest even). */
function toDType(value: number, dtype: X64InputDType): number {
  real[0] = value;
  if (dtype === "bf16" && !Number.isNaN(value)) {
    const bits = word[0]!;
    word[0] = (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000;
  }
  return real[0];
}

interface Matrix {
  readonly offset: number;
  readonly stride: number;
  readonly dtype: X64InputDType;
}

function write(matrix: Matrix, row: number, column: number, value: number): void {
  const index = row * matrix.stride + column;
  if (matrix.dtype === "f32") memory.f32[matrix.offset / 4 + index] = value;
  else {
    real[0] = value;
    memory.u16[matrix.offset / 2 + index] = word[0]! >>> 16;
  }
}

function read(matrix: Matrix, row: number, column: number): number {
  const index = row * matrix.stride + column;
  if (matrix.dtype === "f32") return memory.f32[matrix.offset / 4 + index]!;
  word[0] = memory.u16[matrix.offset / 2 + index]! << 16;
  return real[0]!;
}

interface Product {
  readonly transposition: Transposition;
  readonly dtype: X64InputDType;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly a: Matrix;
  readonly b: Matrix;
  readonly out: Matrix;
}

const elementBytes = (dtype: X64InputDType): number => (dtype === "f32" ? 4 : 2);

/** Operands filled with random values, ragged strides, offsets aligned to elements only. */
function makeProduct(
  random: Random,
  shape: { transposition: Transposition; dtype: X64InputDType; m: number; n: number; k: number },
  atEndOfMemory = false,
): Product {
  const { transposition, dtype, m, n, k } = shape;
  const place = (base: number, rows: number, columns: number, type: X64InputDType): Matrix => {
    const bytes = elementBytes(type);
    const stride = columns + (random.uint32() % 3 === 0 ? 0 : random.uint32() % 9);
    const span = (rows === 0 ? 0 : (rows - 1) * stride + columns) * bytes;
    assert.ok(span + 256 <= BLOCK_BYTES, "the operand fits its block");
    const offset = base + (random.uint32() % 40) * bytes;
    return { offset: atEndOfMemory ? memory.byteLength - span : offset, stride, dtype: type };
  };
  const [aRows, aColumns] = transposition === "tn" ? [k, m] : [m, k];
  const [bRows, bColumns] = transposition === "nt" ? [n, k] : [k, n];
  const a = place(blocks.a, aRows, aColumns, dtype);
  const b = atEndOfMemory
    ? { ...place(blocks.b, bRows, bColumns, dtype), offset: blocks.b }
    : place(blocks.b, bRows, bColumns, dtype);
  const out = place(blocks.out, m, n, "f32");
  const product = { ...shape, a, b, out: atEndOfMemory ? { ...out, offset: blocks.out } : out };
  fill(random, product.a, aRows, aColumns);
  fill(random, product.b, bRows, bColumns);
  return product;
}

function fill(random: Random, matrix: Matrix, rows: number, columns: number): void {
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      write(matrix, row, column, toDType(random.uniform() * 2 - 1, matrix.dtype));
    }
  }
}

const aAt = (p: Product, row: number, d: number): number =>
  p.transposition === "tn" ? read(p.a, d, row) : read(p.a, row, d);
const bAt = (p: Product, d: number, column: number): number =>
  p.transposition === "nt" ? read(p.b, column, d) : read(p.b, d, column);

/** Run a part of the product: rows [row, row + m) and columns [column, column + n). */
function run(
  multiply: BlockMultiplier,
  p: Product,
  accumulate: boolean,
  part = { row: 0, column: 0, m: p.m, n: p.n },
): void {
  const bytes = elementBytes(p.dtype);
  const aElement = part.row * (p.transposition === "tn" ? 1 : p.a.stride);
  const bElement = part.column * (p.transposition === "nt" ? p.b.stride : 1);
  multiply(
    p.a.offset + aElement * bytes,
    p.a.stride,
    p.b.offset + bElement * bytes,
    p.b.stride,
    p.out.offset + (part.row * p.out.stride + part.column) * 4,
    p.out.stride,
    part.m,
    part.n,
    p.k,
    accumulate,
  );
}

const POISON = 0x7fc0dead;

/** Every word of the output's block, to see what was written. */
function outWords(): Int32Array {
  return memory.i32.slice(blocks.out / 4, (blocks.out + BLOCK_BYTES) / 4);
}

function poisonOut(): void {
  memory.i32.fill(POISON, blocks.out / 4, (blocks.out + BLOCK_BYTES) / 4);
}

function assertProduct(p: Product, before: (row: number, column: number) => number): void {
  const name = `${p.transposition}.${p.dtype} ${p.m}×${p.n}×${p.k}`;
  const words = outWords();
  const floats = new Float32Array(words.buffer);
  const first = (p.out.offset - blocks.out) / 4;
  for (let row = 0; row < p.m; row++) {
    for (let column = 0; column < p.n; column++) {
      let sum = before(row, column);
      let magnitude = Math.abs(sum);
      for (let d = 0; d < p.k; d++) {
        const term = aAt(p, row, d) * bAt(p, d, column);
        sum += term;
        magnitude += Math.abs(term);
      }
      const at = first + row * p.out.stride + column;
      const error = Math.abs(floats[at]! - sum);
      const allowed = 1e-6 * magnitude + 1e-30;
      assert.ok(error <= allowed, `${name} [${row}, ${column}]: ${floats[at]} is not ${sum}`);
      words[at] = POISON;
    }
  }
  const stray = words.findIndex((value) => value !== POISON);
  assert.equal(stray, -1, `${name} wrote outside its output, at word ${stray - first}`);
}

const SHAPES = [
  ...[
    [1, 1, 1],
    [1, 33, 7],
    [2, 16, 64],
    [3, 17, 5],
    [12, 32, 16],
    [13, 31, 17],
    [11, 48, 33],
  ],
  ...[
    [24, 64, 129],
    [25, 65, 40],
    [7, 1, 200],
    [64, 64, 16],
    [5, 300, 31],
    [100, 20, 100],
  ],
  ...[
    [37, 530, 65],
    [4, 40, 1100],
    [15, 33, 2051],
    [1, 100, 512],
    [12, 16, 513],
  ],
] as const;

describe("matrix products in x86-64 machine code", () => {
  for (const dtype of DTYPES) {
    for (const transposition of TRANSPOSITIONS) {
      const refusal = reason || x64MultiplierRefusal(transposition, dtype, context);
      const options = refusal ? { skip: refusal } : {};
      const make = (): BlockMultiplier => createX64Multiplier(transposition, dtype, context);
      const name = `${transposition}.${dtype}`;

      it(`${name} equals the plain sum on ragged shapes and writes nothing else`, options, () => {
        const multiply = make();
        const random = new Random(7, name);
        for (const [m, n, k] of SHAPES) {
          const p = makeProduct(random, { transposition, dtype, m, n, k });
          poisonOut();
          run(multiply, p, false);
          assertProduct(p, () => 0);
        }
      });

      it(`${name} adds to the output when asked`, options, () => {
        const multiply = make();
        const random = new Random(8, name);
        for (const [m, n, k] of SHAPES.slice(0, 10)) {
          const p = makeProduct(random, { transposition, dtype, m, n, k });
          poisonOut();
          for (let row = 0; row < m; row++) {
            for (let column = 0; column < n; column++) write(p.out, row, column, row - column);
          }
          run(multiply, p, true);
          assertProduct(p, (row, column) => row - column);
        }
      });

      it(`${name} with no depth gives zeros, or leaves the output`, options, () => {
        const multiply = make();
        const p = makeProduct(new Random(9, name), { transposition, dtype, m: 5, n: 21, k: 0 });
        poisonOut();
        run(multiply, p, true);
        assert.ok(outWords().every((value) => value === POISON));
        run(multiply, p, false);
        assertProduct(p, () => 0);
      });

      it(`${name} sums in an order that depends on the depth alone`, options, () => {
        const multiply = make();
        const random = new Random(10, name);
        for (const k of [3, 64, 513, 1537]) {
          const p = makeProduct(random, { transposition, dtype, m: 61, n: 75, k });
          poisonOut();
          run(multiply, p, false);
          const whole = outWords();
          poisonOut();
          for (let row = 0; row < p.m; ) {
            const m = Math.min(p.m - row, 1 + (random.uint32() % 20));
            for (let column = 0; column < p.n; ) {
              const n = Math.min(p.n - column, 1 + (random.uint32() % 40));
              run(multiply, p, false, { row, column, m, n });
              column += n;
            }
            row += m;
          }
          assert.deepEqual(outWords(), whole, `${name}, depth ${k}`);
        }
      });

      it(`${name} reads nothing beyond its operands, even at the end of memory`, options, () => {
        const multiply = make();
        const random = new Random(11, name);
        for (const [m, n, k] of SHAPES.slice(0, 12)) {
          const p = makeProduct(random, { transposition, dtype, m, n, k }, true);
          poisonOut();
          run(multiply, p, false);
          assertProduct(p, () => 0);
          // The same for b: exchange what stands at the end.
          const q = makeProduct(random, { transposition, dtype, m, n, k });
          const [rows, columns] = transposition === "nt" ? [n, k] : [k, n];
          const span = ((rows - 1) * q.b.stride + columns) * elementBytes(dtype);
          const atEnd = { ...q, b: { ...q.b, offset: memory.byteLength - span } };
          fill(random, atEnd.b, rows, columns);
          poisonOut();
          run(multiply, atEnd, false);
          assertProduct(atEnd, () => 0);
        }
      });

      it(`${name} lets NaN and infinity through to their own elements alone`, options, () => {
        const multiply = make();
        const shape = { transposition, dtype, m: 14, n: 35, k: 37 };
        const p = makeProduct(new Random(12, name), shape);
        const setA = (row: number, d: number, value: number): void =>
          transposition === "tn" ? write(p.a, d, row, value) : write(p.a, row, d, value);
        const setB = (d: number, column: number, value: number): void =>
          transposition === "nt" ? write(p.b, column, d, value) : write(p.b, d, column, value);
        setA(3, 36, Number.NaN);
        setB(5, 34, Number.POSITIVE_INFINITY);
        setA(13, 5, 0);
        poisonOut();
        run(multiply, p, false);
        for (let row = 0; row < p.m; row++) {
          for (let column = 0; column < p.n; column++) {
            const value = read(p.out, row, column);
            const where = `${name} [${row}, ${column}] is ${value}`;
            if (row === 3 || (row === 13 && column === 34)) assert.ok(Number.isNaN(value), where);
            else if (column === 34) assert.equal(Math.abs(value), Number.POSITIVE_INFINITY, where);
            else assert.ok(Number.isFinite(value), where);
          }
        }
      });
    }
  }
});
