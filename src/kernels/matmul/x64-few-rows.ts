/**
 * @file Products of few rows with weights as they stand in memory (nt), in x86-64 machine code:
 * what decoding is made of.
 *
 *     out_MN (=|+=) Σ_k x_MK · w_NK        M at most 12, N at least a window
 *
 * Packing weights for so few rows writes and reads them again for nothing. Here 16 columns by 16
 * words of depth are loaded, transposed in registers and multiplied at once, so every weight is
 * read once. The sums are those of the vector core: one multiply-add a word of depth, from zero,
 * upwards, in blocks that are added to the output in rising order; so a row has the same bits here
 * and in a product of any size. Sixteen words of 16 columns cost 64 shuffles, whatever they hold.
 *
 * A last window that would reach beyond the columns starts earlier and stores what is new.
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import {
  bcst,
  type Gp,
  k,
  type Memory,
  mem,
  merging,
  r,
  type Vector,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import { BLOCK_AT, type BlockSlot, emitPack, loadAddress } from "./x64-block.ts";
import type { X64Core } from "./x64-core.ts";
import { elementsPerWord, emitLoadF32, emitLowBits, sourceBytes } from "./x64-pack.ts";

/** Rows that there is code for, up to a panel's; others use the next and store their own alone. */
export const FEW_ROWS = [1, 2, 4, 8, 12] as const;
export type FewRows = (typeof FEW_ROWS)[number];

const LANES = 16;
const LINE_BYTES = 64;
/** Words of depth transposed at once. */
const STEP_WORDS = 16;

/** Vectors of columns side by side, so that one's multiply-adds hide the latency of another's. */
function vectorsOf(rows: FewRows): 1 | 2 {
  return rows <= 4 ? 2 : 1;
}

/** Columns that are multiplied at once; a product has at least as many. */
export function windowColumns(rows: FewRows): number {
  return LANES * vectorsOf(rows);
}

const LOCALS = [
  "panel",
  "window",
  "outWindow",
  "newColumns",
  "columnsLeft",
  "stepsInBlock",
  "tailElements",
  "fullSteps",
  "adds",
  "ahead",
] as const;
type LocalName = (typeof LOCALS)[number];

/** `pointers` stand 8 rows of weights apart. */
const AT = {
  x: r.rsi,
  pointers: [r.r8, r.r9, r.r10, r.r11],
  stride: r.r12,
  stride3: r.r13,
  stride5: r.r14,
  stride7: r.r15,
  steps: r.rbx,
  stepsLeft: r.rcx,
  out: r.rbp,
  /**
   * A window is read across its rows, which no processor foresees; so meanwhile the next one is
   * asked for, line after line.
   */
  ahead: r.rdx,
} as const;

interface Code {
  readonly a: X64;
  readonly core: X64Core;
  readonly rows: FewRows;
  readonly local: (name: LocalName) => Memory;
}

/** Code for products of `rows` rows with the operands and the order of summation of `core`. */
export function emitFewRows(core: X64Core, rows: FewRows): Uint8Array {
  assert(core.aFormat.layout === "words", `${core.name}: tiles sum in another order`);
  return emitKernel({
    numLocals: LOCALS.length,
    body: (a, localAt) => {
      const local = (name: LocalName): Memory => localAt(LOCALS.indexOf(name));
      const code = { a, core, rows, local };
      emitPack(a, "a", core.aFormat, true);
      emitSetUp(code);
      const [next, end] = [a.label(), a.label()];
      a.bind(next);
      emitWindow(code);
      // The next window, moved back if there are too few columns for it; done when none is left.
      const width = windowColumns(rows);
      a.mov(r.rax, local("columnsLeft"));
      a.sub(r.rax, width);
      a.j("le", end);
      a.mov(local("columnsLeft"), r.rax);
      a.mov(r.rdx, width);
      a.cmp(r.rax, r.rdx);
      a.cmov("g", r.rax, r.rdx);
      a.mov(local("newColumns"), r.rax);
      a.mov(r.rdx, r.rax);
      a.imul(r.rax, AT.stride);
      a.add(local("window"), r.rax);
      a.shl(r.rdx, 2);
      a.add(local("outWindow"), r.rdx);
      a.jmp(next);
      a.bind(end);
    },
  });
}

/** Strides, counts and the first window. */
function emitSetUp({ a, core, rows, local }: Code): void {
  const load = (to: Gp, name: BlockSlot): void => loadSlot(a, to, BLOCK_AT[name]);
  loadAddress(a, r.rax, "b");
  a.mov(local("window"), r.rax);
  loadAddress(a, r.rax, "out");
  a.mov(local("outWindow"), r.rax);
  loadAddress(a, r.rax, "aPanels");
  a.mov(local("panel"), r.rax);
  a.mov(local("newColumns"), windowColumns(rows));
  load(r.rax, "columns");
  a.mov(local("columnsLeft"), r.rax);
  load(AT.stride, "bStrideBytes");
  a.lea(AT.stride3, mem(AT.stride, 0, AT.stride, 2));
  a.lea(AT.stride5, mem(AT.stride, 0, AT.stride, 4));
  a.lea(AT.stride7, mem(AT.stride3, 0, AT.stride, 4));
  load(r.rax, "depth");
  const stepElements = STEP_WORDS * elementsPerWord(core.bFormat.dtype);
  a.mov(r.rdx, r.rax);
  a.and(r.rdx, stepElements - 1);
  a.mov(local("tailElements"), r.rdx);
  a.shr(r.rax, Math.log2(stepElements));
  a.mov(local("fullSteps"), r.rax);
}

/** All depth of one window of columns, block after block. */
function emitWindow(code: Code): void {
  const { a, core, rows, local } = code;
  const blockSteps = divExact(core.depthBlockWords, STEP_WORDS);
  const { dtype, source } = core.bFormat;
  const stepBytes = STEP_WORDS * elementsPerWord(dtype) * sourceBytes(source);
  const [block, store, end] = [a.label(), a.label(), a.label()];
  a.mov(AT.pointers[0], local("window"));
  for (let half = 1; half < 2 * vectorsOf(rows); half++) {
    a.lea(AT.pointers[half]!, mem(AT.pointers[half - 1]!, 0, AT.stride, 8));
  }
  a.lea(r.rax, mem(AT.pointers[2 * vectorsOf(rows) - 1]!, 0, AT.stride, 8));
  a.mov(local("ahead"), r.rax);
  a.mov(AT.x, local("panel"));
  a.mov(AT.stepsLeft, local("fullSteps"));
  loadSlot(a, r.rax, BLOCK_AT.accumulate);
  a.mov(local("adds"), r.rax);
  a.bind(block);
  a.mov(AT.steps, blockSteps);
  a.cmp(AT.stepsLeft, AT.steps);
  a.cmov("l", AT.steps, AT.stepsLeft);
  a.sub(AT.stepsLeft, AT.steps);
  a.mov(local("stepsInBlock"), AT.steps);
  emitClearSums(code);
  a.mov(AT.ahead, local("ahead"));
  a.countdown(AT.steps, 1, () => {
    emitStep(code, "whole");
    a.add(AT.ahead, LANES * vectorsOf(rows) * stepBytes);
    for (const pointer of AT.pointers.slice(0, 2 * vectorsOf(rows))) a.add(pointer, stepBytes);
    a.add(AT.x, STEP_WORDS * core.aFormat.width * 4);
  });
  a.mov(local("ahead"), AT.ahead);
  // A block that is not full takes what is left of the depth, and is the last.
  a.cmp(local("stepsInBlock"), blockSteps);
  a.j("e", store);
  a.cmp(local("tailElements"), 0);
  a.j("e", store);
  emitStep(code, "tail");
  a.bind(store);
  emitStore(code);
  a.mov(local("adds"), 1);
  a.cmp(local("stepsInBlock"), blockSteps);
  a.j("ne", end);
  a.mov(r.rax, AT.stepsLeft);
  a.or(r.rax, local("tailElements"));
  a.cmp(r.rax, 0);
  a.j("ne", block);
  a.bind(end);
}

/** Registers: sums above, a step's words below, one to spare between them. */
const sumOf = (rows: FewRows, row: number, vector: number): Vector =>
  zmm(31 - (row * vectorsOf(rows) + vector));

function emitClearSums({ a, rows }: Code): void {
  for (let row = 0; row < rows; row++) {
    for (let v = 0; v < vectorsOf(rows); v++) {
      const sum = sumOf(rows, row, v);
      a.v("vpxord", [sum, sum, sum]);
    }
  }
}

/** Row `index` of the 16 that begin at two pointers, eight rows apart. */
function rowAt(pointers: readonly Gp[], index: number): Memory {
  const pointer = pointers[index >> 3]!;
  const { stride, stride3, stride5, stride7 } = AT;
  const places = [
    mem(pointer),
    mem(pointer, 0, stride, 1),
    mem(pointer, 0, stride, 2),
    mem(pointer, 0, stride3, 1),
    mem(pointer, 0, stride, 4),
    mem(pointer, 0, stride5, 1),
    mem(pointer, 0, stride3, 2),
    mem(pointer, 0, stride7, 1),
  ];
  return places[index & 7]!;
}

/** 16 words of depth, or those of them that are left. */
function emitStep(code: Code, part: "whole" | "tail"): void {
  const { a, core, rows, local } = code;
  const { dtype, source } = core.bFormat;
  const multiply = dtype === "f32" ? "vfmadd231ps" : "vdpbf16ps";
  const stepBytes = STEP_WORDS * elementsPerWord(dtype) * sourceBytes(source);
  if (part === "tail") {
    a.mov(AT.steps, local("tailElements"));
    emitLowBits(a, r.rax, AT.steps);
    a.kmovd(k(1), r.rax);
  }
  const mask = part === "tail" ? zeroing(k(1)) : null;
  for (let v = 0; v < vectorsOf(rows); v++) {
    const pointers = AT.pointers.slice(2 * v, 2 * v + 2);
    for (let index = 0; index < LANES; index++) {
      const from = rowAt(pointers, index);
      if (dtype === "f32") emitLoadF32(a, zmm(index), from, mask, source);
      else a.v("vmovdqu16", [zmm(index), from], mask);
      const line = (v * LANES + index) * stepBytes;
      if (part === "whole" && line % LINE_BYTES === 0) a.prefetch(mem(AT.ahead, line), 1);
    }
    const words = emitTransposeInPlace(a);
    const done = a.label();
    for (const [word, vector] of words.entries()) {
      if (part === "tail") {
        a.cmp(AT.steps, word * elementsPerWord(dtype));
        a.j("le", done);
      }
      for (let row = 0; row < rows; row++) {
        const x = bcst(mem(AT.x, (word * core.aFormat.width + row) * 4));
        a.v(multiply, [sumOf(rows, row, v), zmm(vector), x]);
      }
    }
    a.bind(done);
  }
}

/**
 * Transposes the 16×16 words in zmm0..15 with one spare register, zmm16; returns which register has
 * which row of the result.
 */
function emitTransposeInPlace(a: X64): number[] {
  let at = Array.from({ length: LANES }, (_, index) => index);
  let spare = LANES;
  // Each pair of rows becomes its low and its high interleaving.
  type Interleave = (to: number, x: number, y: number) => void;
  const pass = (distance: number, low: Interleave, high: Interleave): void => {
    const next = [...at];
    for (let i = 0; i < LANES; i++) {
      if ((i & distance) !== 0) continue;
      const [x, y] = [at[i]!, at[i + distance]!];
      low(spare, x, y);
      high(y, x, y);
      next[i] = spare;
      next[i + distance] = y;
      spare = x;
    }
    at = next;
  };
  const unpack =
    (op: "vpunpckldq" | "vpunpckhdq" | "vpunpcklqdq" | "vpunpckhqdq"): Interleave =>
    (to, x, y) =>
      a.v(op, [zmm(to), zmm(x), zmm(y)]);
  const quarters =
    (order: number): Interleave =>
    (to, x, y) =>
      a.v("vshufi32x4", [zmm(to), zmm(x), zmm(y), order]);
  pass(1, unpack("vpunpckldq"), unpack("vpunpckhdq"));
  pass(2, unpack("vpunpcklqdq"), unpack("vpunpckhqdq"));
  pass(4, quarters(0x88), quarters(0xdd));
  pass(8, quarters(0x88), quarters(0xdd));
  // The unpackings leave the two low bits of a word's place exchanged.
  return at.map((_, word) => at[(word & 12) | ((word & 1) << 1) | ((word >> 1) & 1)]!);
}

/** Sums to the output; lanes that the window before has written are left alone. */
function emitStore({ a, rows, local }: Code): void {
  const vectors = vectorsOf(rows);
  const done = a.label();
  // Of a window of W columns of which only L are left, the last L are new.
  a.mov(AT.steps, windowColumns(rows));
  a.sub(AT.steps, local("newColumns"));
  emitLowBits(a, r.rax, AT.steps);
  a.xor(r.rax, -1);
  for (let v = 0; v < vectors; v++) {
    a.kmovw(k(1 + v), r.rax);
    a.shr(r.rax, LANES);
  }
  a.mov(AT.out, local("outWindow"));
  loadSlot(a, AT.steps, BLOCK_AT.rows);
  loadSlot(a, r.rax, BLOCK_AT.outStrideBytes);
  for (let row = 0; row < rows; row++) {
    const plain = a.label();
    if (row > 0) {
      a.cmp(AT.steps, row);
      a.j("le", done);
    }
    a.cmp(local("adds"), 0);
    a.j("e", plain);
    for (let v = 0; v < vectors; v++) {
      const sum = sumOf(rows, row, v);
      a.v("vaddps", [sum, sum, mem(AT.out, 64 * v)], merging(k(1 + v)));
    }
    a.bind(plain);
    for (let v = 0; v < vectors; v++) {
      a.v("vmovups", [mem(AT.out, 64 * v), sumOf(rows, row, v)], merging(k(1 + v)));
    }
    a.add(AT.out, r.rax);
  }
  a.bind(done);
}
