/**
 * @file What every block multiplier must do, whatever made it: one suite for all targets.
 *
 * Operands have ragged shapes and strides, and offsets aligned to elements only. The output stands
 * in a poisoned block. Operands are also put at the very end of the memory, where a read beyond
 * them is a crash.
 */
import assert from "node:assert/strict";
import { it } from "node:test";
import { Random } from "../../base/random.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { BlockMultiplier, Transposition } from "./block-multiplier.ts";

type InputDType = "f32" | "bf16";

/** The multiplier under test. */
export interface MultiplierCase {
  readonly name: string;
  readonly transposition: Transposition;
  readonly dtype: InputDType;
  readonly memory: CpuMemory;
  /** Why it cannot run here; empty if it can. */
  readonly refusal: string;
  make(): BlockMultiplier;
}

interface Shape {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

/** A matrix in memory: row r starts at element offset ÷ element bytes + r·stride. */
interface Matrix {
  readonly offset: number;
  readonly stride: number;
  readonly rows: number;
  readonly columns: number;
  readonly dtype: InputDType;
}

interface Product extends Shape {
  readonly a: Matrix;
  readonly b: Matrix;
  readonly out: Matrix;
}

const BLOCK_BYTES = 2 ** 21;
const POISON = 0x7fc0dead;

const SHAPES: readonly Shape[] = [
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
    [50, 20, 100],
  ],
  ...[
    [17, 530, 33],
    [4, 20, 1100],
    [5, 33, 2051],
    [1, 100, 512],
    [12, 16, 513],
    [40, 33, 96],
  ],
  // Whole panels of rows and of depth, which some cores read where they stand.
  ...[
    [64, 65, 128],
    [37, 300, 64],
    [33, 20, 2080],
    [800, 17, 32],
  ],
].map(([m = 0, n = 0, k = 0]) => ({ m, n, k }));

const bytesOf = (dtype: InputDType): number => (dtype === "f32" ? 4 : 2);

const word = new Uint32Array(1);
const real = new Float32Array(word.buffer);

/** The bf16 nearest to `value` (half to even), as bits. */
function toBf16(value: number): number {
  real[0] = value;
  if (Number.isNaN(value)) return 0x7fc0;
  const bits = word[0]!;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

class Bench {
  readonly random: Random;
  readonly #case: MultiplierCase;
  readonly #blocks: Readonly<Record<"a" | "b" | "out", number>>;

  constructor(theCase: MultiplierCase, blocks: Readonly<Record<"a" | "b" | "out", number>>) {
    this.#case = theCase;
    this.random = new Random(7, theCase.name);
    this.#blocks = blocks;
  }

  write(matrix: Matrix, row: number, column: number, value: number): void {
    const { memory } = this.#case;
    const index = matrix.offset / bytesOf(matrix.dtype) + row * matrix.stride + column;
    if (matrix.dtype === "f32") memory.f32[index] = value;
    else memory.u16[index] = toBf16(value);
  }

  /** All of a matrix, row after row. */
  values(matrix: Matrix): Float32Array {
    const { memory } = this.#case;
    const first = matrix.offset / bytesOf(matrix.dtype);
    const values = new Float32Array(matrix.rows * matrix.columns);
    for (let row = 0; row < matrix.rows; row++) {
      for (let column = 0; column < matrix.columns; column++) {
        const index = first + row * matrix.stride + column;
        if (matrix.dtype === "f32") real[0] = memory.f32[index]!;
        else word[0] = memory.u16[index]! << 16;
        values[row * matrix.columns + column] = real[0]!;
      }
    }
    return values;
  }

  /** Random operands; the one named `last` ends where the memory ends. */
  product(shape: Shape, last: "a" | "b" | null = null): Product {
    const { transposition, dtype, memory } = this.#case;
    const { m, n, k } = shape;
    const place = (
      name: "a" | "b" | "out",
      [rows, columns]: readonly [number, number],
      type: InputDType,
    ): Matrix => {
      const stride = columns + Math.max(0, this.random.below(12) - 4);
      const span = (rows === 0 ? 0 : (rows - 1) * stride + columns) * bytesOf(type);
      assert.ok(span + 256 <= BLOCK_BYTES, "the operand fits its block");
      const inBlock = this.#blocks[name] + this.random.below(40) * bytesOf(type);
      const offset = name === last ? memory.byteLength - span : inBlock;
      return { offset, stride, rows, columns, dtype: type };
    };
    const a = place("a", transposition === "tn" ? [k, m] : [m, k], dtype);
    const b = place("b", transposition === "nt" ? [n, k] : [k, n], dtype);
    const out = place("out", [m, n], "f32");
    for (const matrix of [a, b]) {
      for (let row = 0; row < matrix.rows; row++) {
        for (let column = 0; column < matrix.columns; column++) {
          this.write(matrix, row, column, this.random.uniform() * 2 - 1);
        }
      }
    }
    return { ...shape, a, b, out };
  }

  /** Write A[row, depth] or B[depth, column], however it is stored. */
  setA(p: Product, row: number, depth: number, value: number): void {
    const transposed = this.#case.transposition === "tn";
    this.write(p.a, transposed ? depth : row, transposed ? row : depth, value);
  }

  setB(p: Product, depth: number, column: number, value: number): void {
    const transposed = this.#case.transposition === "nt";
    this.write(p.b, transposed ? column : depth, transposed ? depth : column, value);
  }

  /** Run rows [row, row + m) and columns [column, column + n) of the product. */
  run(
    multiply: BlockMultiplier,
    p: Product,
    accumulate: boolean,
    part = { row: 0, column: 0, m: p.m, n: p.n },
  ): void {
    const { transposition, dtype } = this.#case;
    const aElement = part.row * (transposition === "tn" ? 1 : p.a.stride);
    const bElement = part.column * (transposition === "nt" ? p.b.stride : 1);
    multiply(
      p.a.offset + aElement * bytesOf(dtype),
      p.a.stride,
      p.b.offset + bElement * bytesOf(dtype),
      p.b.stride,
      p.out.offset + (part.row * p.out.stride + part.column) * 4,
      p.out.stride,
      part.m,
      part.n,
      p.k,
      accumulate,
    );
  }

  /** Run all rows of the product, so many at a time. */
  runInParts(
    multiply: BlockMultiplier,
    p: Product,
    accumulate: boolean,
    counts: readonly number[],
  ): void {
    let row = 0;
    for (const m of counts) {
      this.run(multiply, p, accumulate, { row, column: 0, m, n: p.n });
      row += m;
    }
  }

  /** Make some elements of both operands subnormal, huge, infinite or NaN. */
  makeUneven(p: Product): void {
    const { random } = this;
    for (const matrix of [p.a, p.b]) {
      for (let row = 0; row < matrix.rows; row++) {
        for (let column = 0; column < matrix.columns; column++) {
          const value = random.uniform() * 2 - 1;
          const kind = random.below(100);
          if (kind < 10) this.write(matrix, row, column, value * 1e-38);
          else if (kind < 20) this.write(matrix, row, column, value * 1e16);
        }
      }
    }
    this.setA(p, 1, 0, Number.POSITIVE_INFINITY);
    this.setA(p, 5, p.k - 1, Number.NaN);
    this.setB(p, 7, 40, Number.NEGATIVE_INFINITY);
  }

  poisonOut(): void {
    this.#case.memory.i32.fill(
      POISON,
      this.#blocks.out / 4,
      this.#blocks.out / 4 + BLOCK_BYTES / 4,
    );
  }

  fillOut(value: number): void {
    const first = this.#blocks.out / 4;
    this.#case.memory.f32.fill(value, first, first + BLOCK_BYTES / 4);
  }

  /** Every word of the output's block. */
  outWords(): Int32Array {
    return this.#case.memory.i32.slice(this.#blocks.out / 4, (this.#blocks.out + BLOCK_BYTES) / 4);
  }

  /** The same as numbers; all NaN are alike. */
  outNumbers(): number[] {
    return Array.from(new Float32Array(this.outWords().buffer));
  }

  /** The output is `before` plus the plain sum, and nothing around it was written. */
  assertProduct(p: Product, before: (row: number, column: number) => number): void {
    const { transposition, name } = this.#case;
    const [a, b] = [this.values(p.a), this.values(p.b)];
    const words = this.outWords();
    const floats = new Float32Array(words.buffer);
    const first = (p.out.offset - this.#blocks.out) / 4;
    for (let row = 0; row < p.m; row++) {
      for (let column = 0; column < p.n; column++) {
        let sum = before(row, column);
        let magnitude = Math.abs(sum);
        for (let d = 0; d < p.k; d++) {
          const left = a[transposition === "tn" ? d * p.m + row : row * p.k + d]!;
          const term = left * b[transposition === "nt" ? column * p.k + d : d * p.n + column]!;
          sum += term;
          magnitude += Math.abs(term);
        }
        const at = first + row * p.out.stride + column;
        const where = `${name} ${p.m}×${p.n}×${p.k} [${row}, ${column}]`;
        const isNear = Math.abs(floats[at]! - sum) <= 1e-6 * magnitude + 1e-30;
        if (!isNear) assert.fail(`${where}: ${floats[at]} is not ${sum}`);
        words[at] = POISON;
      }
    }
    const stray = words.findIndex((value) => value !== POISON);
    assert.equal(stray, -1, `${name} wrote outside its output, at word ${stray - first}`);
  }
}

/** Registers the tests of one multiplier. */
export function testMultiplier(theCase: MultiplierCase): void {
  const { name, memory, refusal } = theCase;
  const options = refusal === "" ? {} : { skip: refusal };
  const blocks = {
    a: memory.reserve(BLOCK_BYTES),
    b: memory.reserve(BLOCK_BYTES),
    out: memory.reserve(BLOCK_BYTES),
  };
  const test: RegisterTest = (sentence, body) => {
    it(`${name} ${sentence}`, options, () => body(theCase.make(), new Bench(theCase, blocks)));
  };
  testResults(test);
  testOrder(test, name);
  testFewRows(test, name);
  testBounds(test, name);
}

type RegisterTest = (
  sentence: string,
  body: (multiply: BlockMultiplier, bench: Bench) => void,
) => void;

function testResults(test: RegisterTest): void {
  test("equals the plain sum on ragged shapes and writes nothing else", (multiply, bench) => {
    for (const shape of SHAPES) {
      const p = bench.product(shape);
      bench.poisonOut();
      bench.run(multiply, p, false);
      bench.assertProduct(p, () => 0);
    }
  });

  test("adds to the output when asked", (multiply, bench) => {
    for (const shape of SHAPES.slice(0, 11)) {
      const p = bench.product(shape);
      bench.poisonOut();
      for (let row = 0; row < p.m; row++) {
        for (let column = 0; column < p.n; column++) bench.write(p.out, row, column, row - column);
      }
      bench.run(multiply, p, true);
      bench.assertProduct(p, (row, column) => row - column);
    }
  });

  test("with no depth gives zeros, or leaves the output", (multiply, bench) => {
    const p = bench.product({ m: 5, n: 21, k: 0 });
    bench.poisonOut();
    bench.run(multiply, p, true);
    assert.ok(bench.outWords().every((value) => value === POISON));
    bench.run(multiply, p, false);
    bench.assertProduct(p, () => 0);
  });
}

function testOrder(test: RegisterTest, name: string): void {
  test("sums in an order that depends on the depth alone", (multiply, bench) => {
    const { random } = bench;
    for (const k of [3, 64, 513, 2051, 2080]) {
      const p = bench.product({ m: 61, n: 75, k });
      bench.poisonOut();
      bench.run(multiply, p, false);
      const whole = bench.outWords();
      bench.poisonOut();
      for (let row = 0; row < p.m; ) {
        const m = Math.min(p.m - row, 1 + random.below(40));
        for (let column = 0; column < p.n; ) {
          const n = Math.min(p.n - column, 1 + random.below(40));
          bench.run(multiply, p, false, { row, column, m, n });
          column += n;
        }
        row += m;
      }
      assert.deepEqual(bench.outWords(), whole, `${name}, depth ${k}`);
    }
  });
}

function testFewRows(test: RegisterTest, name: string): void {
  const counts = [...Array.from({ length: 13 }, (_, index) => index + 1), 16, 17, 32, 33];
  const m = counts.reduce((sum, count) => sum + count, 0);
  test("gives few rows the bits that they have among many", (multiply, bench) => {
    for (const k of [1, 31, 1024, 2049]) {
      for (const adds of [false, true]) {
        const p = bench.product({ m, n: 81, k });
        bench.fillOut(0.75);
        bench.run(multiply, p, adds);
        const whole = bench.outWords();
        bench.fillOut(0.75);
        bench.runInParts(multiply, p, adds, counts);
        assert.deepEqual(bench.outWords(), whole, `${name}, depth ${k}, adds ${adds}`);
      }
    }
  });

  test("does so with subnormal, huge and infinite operands and NaN", (multiply, bench) => {
    for (const k of [33, 2100]) {
      const p = bench.product({ m, n: 49, k });
      bench.makeUneven(p);
      bench.fillOut(0);
      bench.run(multiply, p, false);
      const whole = bench.outNumbers();
      assert.ok(whole.some(Number.isNaN));
      assert.ok(whole.includes(Number.POSITIVE_INFINITY));
      bench.fillOut(0);
      bench.runInParts(multiply, p, false, counts);
      assert.deepEqual(bench.outNumbers(), whole, `${name}, depth ${k}`);
    }
  });
}

function testBounds(test: RegisterTest, name: string): void {
  test("reads nothing beyond its operands, even at the end of memory", (multiply, bench) => {
    for (const shape of [...SHAPES.slice(0, 12), ...SHAPES.slice(-4)]) {
      for (const last of ["a", "b"] as const) {
        const p = bench.product(shape, last);
        bench.poisonOut();
        bench.run(multiply, p, false);
        bench.assertProduct(p, () => 0);
      }
    }
  });

  test("lets NaN and infinity through to their own elements alone", (multiply, bench) => {
    const p = bench.product({ m: 14, n: 35, k: 37 });
    bench.setA(p, 3, 36, Number.NaN);
    bench.setB(p, 5, 34, Number.POSITIVE_INFINITY);
    bench.setA(p, 13, 5, 0);
    bench.poisonOut();
    bench.run(multiply, p, false);
    const out = bench.values(p.out);
    for (let row = 0; row < p.m; row++) {
      for (let column = 0; column < p.n; column++) {
        const value = out[row * p.n + column]!;
        const where = `${name} [${row}, ${column}] is ${value}`;
        if (row === 3 || (row === 13 && column === 34)) assert.ok(Number.isNaN(value), where);
        else if (column === 34) assert.equal(Math.abs(value), Number.POSITIVE_INFINITY, where);
        else assert.ok(Number.isFinite(value), where);
      }
    }
  });
}
