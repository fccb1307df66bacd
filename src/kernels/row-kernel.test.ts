/**
 * @file Every row kernel, generated for every target, against its reference: random shapes with
 * ragged ends, strides, misaligned rows, poisoned surroundings, NaN and infinities.
 *
 * Operands, what is written and what is an index are read off the row program itself. Bytes that
 * belong to no operand hold NaN patterns and must survive; operands that are only read must keep
 * every bit.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { defined } from "../base/errors.ts";
import { roundUp } from "../base/integers.ts";
import { Random } from "../base/random.ts";
import type { Instruction, RowProgram } from "../codegen/vector/program.ts";
import { CpuMemory } from "../device/cpu/memory.ts";
import { createNativeRuntime } from "../device/cpu/native.ts";
import type { KernelBody, ThreadContext } from "../device/program.ts";
import { fromBf16, toBf16 } from "../numerics/bf16.ts";
import { mismatch, toleranceFor } from "../numerics/tolerance.ts";
import { DECLARATIONS } from "./declarations.ts";
import type { KernelImplementation, KernelTarget } from "./kernel.ts";
import type { RowProgramOf } from "./row-kernel.ts";
import { ROW_PROGRAMS, type RowKernelName } from "./row-programs.ts";

const native = createNativeRuntime();
const REGION_BYTES = 192 * 1024;

function makeContext(): ThreadContext {
  const memory = CpuMemory.create(native.runtime);
  const span = (byteLength: number) => ({ byteOffset: memory.reserve(byteLength), byteLength });
  return {
    memory,
    threadIndex: 0,
    scratch: span(4096),
    argumentBlock: span(4096),
    native: native.runtime,
  };
}

const context = makeContext();
const region = context.memory.reserve(REGION_BYTES);

type ElementType = "f32" | "bf16" | "i32" | "u8";

interface TestOperand {
  readonly name: string;
  readonly dtype: ElementType;
  readonly byteOffset: number;
  readonly stride: number;
  readonly rows: number;
  readonly columns: number;
  readonly written: boolean;
}

function writtenOperands(program: RowProgram): ReadonlySet<number> {
  const stores = program.instructions.filter(
    (item): item is Instruction & { op: "store" | "storePerRow" } =>
      item.op === "store" || item.op === "storePerRow",
  );
  return new Set(stores.map((item) => item.operand));
}

const INTEGER_OPERANDS = /^(index\d*|positions|targets|limits)$/;

interface Shape {
  readonly rows: number;
  readonly columns: number;
  readonly rowsPerTask: number;
  readonly sourceRows: number;
  /** Outputs over inputs, where the kernel allows it. */
  readonly inPlace: boolean;
}

/** Operands that may be one matrix, by kernel: [written, read]. */
const IN_PLACE: Record<string, readonly (readonly [string, string])[]> = {
  "castRows/f32.f32": [["out", "x"]],
  "rmsNorm/f32": [["out", "x"]],
  "rmsNormBackward/f32": [["dX", "dOut"]],
  "swiglu/f32": [["out", "gate"]],
  "swigluBackward/f32.weighted": [
    ["dGate", "gate"],
    ["dUp", "up"],
  ],
  "softmaxCausal/f32": [["out", "x"]],
  "addRows/f32": [["out", "b"]],
};

/** The operands with outputs laid over inputs. */
function aliased(name: string, operands: readonly TestOperand[]): TestOperand[] {
  const pairs = IN_PLACE[name] ?? [];
  return operands.map((operand) => {
    const target = pairs.find(([written]) => written === operand.name)?.[1] ?? operand.name;
    const source = defined(
      operands.find((other) => other.name === target),
      target,
    );
    const written = operand.written || pairs.some(([, read]) => read === operand.name);
    const { byteOffset, stride } = source;
    return { ...operand, byteOffset, stride, written };
  });
}

interface Layout {
  readonly operands: readonly TestOperand[];
  /** Bytes of the region that the case uses, borders included. */
  readonly byteLength: number;
}

/** Lays the operands out with random gaps, misaligned but on element borders. */
function layOut(program: RowProgram, shape: Shape, random: Random): Layout {
  const written = writtenOperands(program);
  const tasks = Math.ceil(shape.rows / shape.rowsPerTask);
  let next = region + 64;
  const operands = program.operands.map(({ name, kind, elementBytes }, index): TestOperand => {
    const dtype = INTEGER_OPERANDS.test(name) ? "i32" : STORED_AS[elementBytes];
    const columns = kind === "perRow" ? 1 : shape.columns;
    const rows = { row: shape.rows, perRow: shape.rows, vector: 1 } as Record<string, number>;
    const count = rows[kind] ?? (kind === "partial" ? tasks : shape.sourceRows);
    const stride = kind === "vector" ? 0 : columns + random.below(4);
    const byteOffset = next + elementBytes * random.below(17);
    next = roundUp(byteOffset + elementBytes * (stride + 1) * (count + 1) + 4 * columns, 4);
    return { name, dtype, byteOffset, stride, rows: count, columns, written: written.has(index) };
  });
  const byteLength = next + 64 - region;
  if (shape.inPlace) return { operands: aliased(program.name, operands), byteLength };
  assert.ok(byteLength <= REGION_BYTES, "the operands fit the test's region");
  return { operands, byteLength };
}

const STORED_AS = { 1: "u8", 2: "bf16", 4: "f32" } as const;
const ELEMENT_BYTES = { u8: 1, bf16: 2, f32: 4, i32: 4 } as const;
const elementBytes = (dtype: ElementType): number => ELEMENT_BYTES[dtype];

function forEachElement(
  operand: TestOperand,
  visit: (byteOffset: number, row: number, column: number) => void,
): void {
  const bytes = elementBytes(operand.dtype);
  for (let row = 0; row < operand.rows; row++) {
    for (let column = 0; column < operand.columns; column++) {
      visit(operand.byteOffset + (row * operand.stride + column) * bytes, row, column);
    }
  }
}

function write(dtype: ElementType, byteOffset: number, value: number): void {
  const { memory } = context;
  if (dtype === "bf16") memory.u16[byteOffset / 2] = toBf16(value);
  else if (dtype === "i32") memory.i32[byteOffset / 4] = value;
  else if (dtype === "u8") memory.u8[byteOffset] = value;
  else memory.f32[byteOffset / 4] = value;
}

function read(dtype: ElementType, byteOffset: number): number {
  const { memory } = context;
  if (dtype === "bf16") return fromBf16(defined(memory.u16[byteOffset / 2], "element"));
  if (dtype === "i32") return defined(memory.i32[byteOffset / 4], "element");
  if (dtype === "u8") return defined(memory.u8[byteOffset], "element");
  return defined(memory.f32[byteOffset / 4], "element");
}

type Special = "none" | "NaN" | "infinity";

function fillOperands(
  { operands, byteLength }: Layout,
  shape: Shape,
  random: Random,
  special: Special,
): void {
  context.memory.u8.fill(0xff, region, region + byteLength);
  const permutation = Array.from({ length: shape.sourceRows }, (_, index) => index);
  for (const operand of operands) {
    random.shuffle(permutation);
    forEachElement(operand, (byteOffset, row, column) => {
      const { name, dtype } = operand;
      let value = random.normal() * 2;
      if (name === "secondMoment") value = Math.abs(value);
      if (name === "dGain") value = 0;
      // Each pair of columns has one angle; the sine of the first is negated.
      const angle = row * 31 + (column >> 1);
      if (name === "cosTable") value = Math.cos(angle);
      if (name === "sinTable") value = Math.sin(angle) * (column % 2 === 0 ? -1 : 1);
      if (dtype === "u8") value = random.below(256);
      else if (dtype === "i32") {
        if (name === "limits") value = random.below(shape.columns + 1);
        else if (name === "targets") value = random.below(shape.columns + 1) - 1;
        else value = defined(permutation[row % shape.sourceRows], "index");
      } else if (special !== "none" && random.below(29) === 0 && !/dGain|Table/.test(name)) {
        if (special === "NaN") value = Number.NaN;
        else value = random.below(2) === 0 ? Infinity : -Infinity;
      }
      write(dtype, byteOffset, value);
    });
  }
}

function regionBytes({ byteLength }: Layout): Uint8Array {
  return context.memory.u8.slice(region, region + byteLength);
}

interface Case {
  readonly kernel: string;
  readonly variant: string;
  readonly program: RowProgram;
  readonly shape: Shape;
  readonly special: Special;
  readonly seed: number;
}

const EXACT = /^(castRows|gatherRows|gatherBytes|addRows|scatterAddRows|sumPartials|combineRows)/;

function check(target: KernelTarget, item: Case): void {
  const { kernel, variant, program, shape, special, seed } = item;
  const random = new Random(seed, `${kernel}/${variant}`);
  const declaration = defined(
    DECLARATIONS.find(({ name }) => name === kernel),
    kernel,
  );
  const implementation = (wanted: KernelTarget) =>
    defined(
      declaration.implementations.find((found) => found.target === wanted),
      wanted,
    );
  const layout = layOut(program, shape, random);
  fillOperands(layout, shape, random, special);
  const scalars = program.scalars.map((name) => {
    if (name === "inverseColumns") return 1 / shape.columns;
    if (name === "direction") return random.below(2) === 0 ? 1 : -1;
    return 0.05 + random.uniform();
  });
  const slots = new Float64Array(64);
  slots.set([
    ...[shape.rows, shape.columns, shape.rowsPerTask],
    ...layout.operands.flatMap(({ byteOffset, stride }) => [byteOffset, stride]),
    ...scalars,
  ]);
  const { split } = program;
  const numTasks = Math.ceil((split === "rows" ? shape.rows : shape.columns) / shape.rowsPerTask);
  const before = regionBytes(layout);
  implementation("reference").create(variant, context)(slots, 0, numTasks);
  const expected = regionBytes(layout);
  context.memory.u8.set(before, region);
  const body = cachedBody(implementation(target), kernel, variant);
  // In two calls, as threads would share it.
  const half = Math.floor(numTasks / 2);
  body(slots, half, numTasks);
  body(slots, 0, half);
  compare(layout, before, expected, item, target);
}

const bodies = new Map<string, KernelBody>();

function cachedBody(
  implementation: KernelImplementation,
  kernel: string,
  variant: string,
): KernelBody {
  const key = `${implementation.target} ${kernel}/${variant}`;
  const body = bodies.get(key) ?? implementation.create(variant, context);
  bodies.set(key, body);
  return body;
}

function compare(
  layout: Layout,
  before: Uint8Array,
  expected: Uint8Array,
  { kernel, variant, shape, special, seed }: Case,
  target: KernelTarget,
): void {
  const actual = regionBytes(layout);
  const place =
    `${target} ${kernel}/${variant} ${shape.rows}×${shape.columns} by ${shape.rowsPerTask}` +
    `${shape.inPlace ? " in place" : ""}, ` +
    `${special}, seed ${seed}`;
  const owned = new Uint8Array(layout.byteLength);
  for (const operand of layout.operands) {
    const got: number[] = [];
    const want: number[] = [];
    const bytes = elementBytes(operand.dtype);
    forEachElement(operand, (byteOffset) => {
      if (operand.written) owned.fill(1, byteOffset - region, byteOffset - region + bytes);
      got.push(read(operand.dtype, byteOffset));
    });
    if (!operand.written) continue;
    context.memory.u8.set(expected, region);
    forEachElement(operand, (byteOffset) => want.push(read(operand.dtype, byteOffset)));
    context.memory.u8.set(actual, region);
    const storage = operand.dtype === "bf16" ? "bf16" : "f32";
    const exact = EXACT.test(kernel) && (storage === "f32" || kernel !== "combineRows");
    const allowed = exact
      ? toleranceFor(kernel === "combineRows" ? "row" : "storage", storage)
      : toleranceFor("row", storage, shape.columns);
    const problem = mismatch(Float32Array.from(got), Float32Array.from(want), allowed);
    assert.equal(problem, undefined, `${place}: ${operand.name}${problem}`);
  }
  const spoiled = actual.findIndex((byte, index) => owned[index] === 0 && byte !== before[index]);
  assert.equal(spoiled, -1, `${place}: byte ${spoiled} outside every written operand changed`);
}

const RAGGED_COLUMNS = [1, 3, 4, 15, 16, 17, 63, 64, 65, 100, 200];
const ROWS = [0, 1, 5];

function cases(kernel: string, variant: string, program: RowProgram, seed: number): Case[] {
  const random = new Random(seed, kernel);
  const isPaired = program.instructions.some(({ op }) => op === "swapPairs");
  const isOneTask = kernel === "sumPartials";
  return RAGGED_COLUMNS.flatMap((ragged, index) => {
    const columns = isPaired ? roundUp(ragged, 2) : ragged;
    const modes = IN_PLACE[`${kernel}/${variant}`] === undefined ? [false] : [false, true];
    const specials = ["none", "NaN", "infinity"] as const;
    const combinations = specials.flatMap((special) =>
      modes.map((inPlace) => ({ special, inPlace })),
    );
    return combinations.map(({ special, inPlace }) => {
      const rows = defined(ROWS[(index + special.length) % ROWS.length], "rows");
      const rowsPerTask = isOneTask ? Math.max(rows, 1) : 1 + random.below(4);
      const shape = { rows, columns, rowsPerTask, sourceRows: 7, inPlace };
      return { kernel, variant, program, shape, special, seed: seed + index };
    });
  });
}

/** Not f64, and of the sixteen numbers of combined rows only some. */
function isGenerated(variant: string): boolean {
  return !variant.includes("f64") && !/^f32\.([24579]|1[0-5])$/.test(variant);
}

const SKIPS = { x64: native.reason === "" ? false : native.reason, wasm: false };

for (const target of ["wasm", "x64"] as const) {
  for (const [kernel, programOf] of Object.entries(ROW_PROGRAMS) as [
    RowKernelName,
    RowProgramOf,
  ][]) {
    const title = `${kernel} on ${target} agrees with the reference and touches nothing else`;
    test(title, { skip: SKIPS[target] }, () => {
      const seed = 20240607;
      const declaration = defined(
        DECLARATIONS.find(({ name }) => name === kernel),
        kernel,
      );
      for (const variant of declaration.variants.filter(isGenerated)) {
        const program = programOf(variant);
        for (const item of cases(kernel, variant, program, seed)) check(target, item);
      }
    });
  }
}
