/**
 * @file Products of up to eight rows with coded weights, in x86-64 machine code: what decoding is
 * made of.
 *
 *     out_MN (=|+=) Σ_g scale · Σ_{k in g} x_MK · (code_NK + offset)
 *
 * Codes are read once, in order, and opened in registers (x64-expand.ts); several panels go side by
 * side, so that one's multiply-adds hide the latency of another's. Sums are those of the product of
 * many rows: one multiply-add a word of depth within a group, from zero, upwards, then the offset,
 * then the scale, added to what the groups before have given. So a row has the same bits in both.
 */
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
  zmm,
} from "../../codegen/x64/operands.ts";
import { BLOCK_AT, emitPack, loadAddress } from "../matmul/x64-block.ts";
import { emitEither } from "../matmul/x64-vector-core.ts";
import {
  emitExpand,
  emitLoadTables,
  FREE_VECTOR,
  STEP_WORDS,
  wordsPerVector,
} from "./x64-expand.ts";
import {
  type CodedCore,
  emitGroupSums,
  emitLoadOffsets,
  emitLoadScales,
  emitOffsetPointer,
  rowFormat,
  scaleBytes,
} from "./x64-parts.ts";

/** Rows that there is code for; others use the next and store their own alone. */
export const FEW_ROWS = [1, 2, 4, 8] as const;
export type FewRows = (typeof FEW_ROWS)[number];

/** Panels side by side: at most eight sums, and as many totals. */
const PANELS: Readonly<Record<FewRows, 1 | 2 | 4>> = { 1: 4, 2: 4, 4: 2, 8: 1 };

const LOCALS = ["columnsLeft", "adds", "stepsLeft", "x", "outWindow", "groupSteps"] as const;

const AT = {
  codes: r.rsi,
  panelBytes: r.r8,
  panelBytes3: r.r9,
  scales: r.r10,
  scalesBytes: r.r11,
  scalesBytes3: r.r12,
  window: r.r13,
  windowScales: r.r14,
  x: r.rbx,
  steps: r.rcx,
  groupSums: r.rbp,
  offsets: r.r15,
} as const;

interface Code {
  readonly a: X64;
  readonly core: CodedCore;
  readonly rows: FewRows;
  readonly local: (name: (typeof LOCALS)[number]) => Memory;
}

/** Code for products of `rows` rows. */
export function emitCodedFewRows(core: CodedCore, rows: FewRows): Uint8Array {
  return emitKernel({
    numLocals: LOCALS.length,
    body: (a, localAt) => {
      const code = { a, core, rows, local: (name) => localAt(LOCALS.indexOf(name)) } as Code;
      const format = rowFormat(rows);
      emitPack(a, "a", format, true);
      emitGroupSums(a, core, format);
      emitSetUp(code);
      for (let panels: number = PANELS[rows]; panels >= 1; panels /= 2) emitWindows(code, panels);
    },
  });
}

function emitSetUp({ a, core, local }: Code): void {
  loadSlot(a, r.rax, BLOCK_AT.aConstants);
  emitLoadTables(a, core.format, r.rax);
  loadAddress(a, r.rax, "out");
  a.mov(local("outWindow"), r.rax);
  loadAddress(a, AT.window, "b");
  loadSlot(a, AT.windowScales, BLOCK_AT.bScales);
  loadSlot(a, AT.panelBytes, BLOCK_AT.bStrideBytes);
  a.lea(AT.panelBytes3, mem(AT.panelBytes, 0, AT.panelBytes, 2));
  loadSlot(a, AT.scalesBytes, BLOCK_AT.bScalesPanelBytes);
  a.lea(AT.scalesBytes3, mem(AT.scalesBytes, 0, AT.scalesBytes, 2));
  loadSlot(a, r.rax, BLOCK_AT.columns);
  a.mov(local("columnsLeft"), r.rax);
  loadSlot(a, r.rax, BLOCK_AT.pieceWords);
  a.shr(r.rax, Math.log2(STEP_WORDS));
  a.mov(local("groupSteps"), r.rax);
  loadAddress(a, r.rax, "aPanels");
  a.mov(local("x"), r.rax);
  // The memory's base is no longer needed; its register counts steps.
}

/** As many windows of `panels` panels as there are columns for: the last panel may be narrow. */
function emitWindows(code: Code, panels: number): void {
  const { a, local } = code;
  const [next, end] = [a.label(), a.label()];
  a.bind(next);
  a.cmp(local("columnsLeft"), 16 * (panels - 1));
  a.j("le", end);
  emitWindow(code, panels);
  for (let panel = 0; panel < panels; panel++) {
    a.add(AT.window, AT.panelBytes);
    a.add(AT.windowScales, AT.scalesBytes);
  }
  a.add(local("outWindow"), 64 * panels);
  a.sub(local("columnsLeft"), 16 * panels);
  a.jmp(next);
  a.bind(end);
}

const sumOf = ({ rows }: Code, row: number, panel: number): Vector =>
  zmm(FREE_VECTOR + panel * rows + row);
const totalOf = ({ rows }: Code, row: number, panel: number): Vector =>
  zmm(FREE_VECTOR + 8 + panel * rows + row);
const SCALE = zmm(26);
const OFFSET = zmm(27);

/** A panel's place, from the first one's. */
function panelAt(
  [base, bytes, bytes3]: readonly [Gp, Gp, Gp],
  panel: number,
  displacement = 0,
): Memory {
  if (panel === 0) return mem(base, displacement);
  if (panel === 3) return mem(base, displacement, bytes3, 1);
  return mem(base, displacement, bytes, panel as 1 | 2);
}

function emitWindow(code: Code, panels: number): void {
  const { a, core, rows, local } = code;
  const nextGroup = a.label();
  emitMasks(code, panels);
  a.mov(AT.codes, AT.window);
  a.mov(AT.scales, AT.windowScales);
  a.mov(AT.x, local("x"));
  loadSlot(a, AT.groupSums, BLOCK_AT.aScales);
  loadSlot(a, r.rax, BLOCK_AT.depth);
  a.add(r.rax, 2 * STEP_WORDS - 1);
  a.shr(r.rax, Math.log2(2 * STEP_WORDS));
  a.mov(local("stepsLeft"), r.rax);
  loadSlot(a, r.rax, BLOCK_AT.accumulate);
  a.mov(local("adds"), r.rax);
  emitLoadTotals(code, panels);
  a.bind(nextGroup);
  a.mov(AT.steps, local("groupSteps"));
  a.mov(r.rax, local("stepsLeft"));
  a.cmp(r.rax, AT.steps);
  a.cmov("l", AT.steps, r.rax);
  a.sub(r.rax, AT.steps);
  a.mov(local("stepsLeft"), r.rax);
  for (let index = 0; index < rows * panels; index++) {
    const sum = zmm(FREE_VECTOR + index);
    a.v("vpxord", [sum, sum, sum]);
  }
  a.countdown(AT.steps, 1, () => emitStep(code, panels));
  emitPromotion(code, panels);
  a.mov(local("adds"), 1);
  a.add(AT.scales, scaleBytes(core));
  // The sums of the group's activations, one a row.
  a.add(AT.groupSums, rows * 4);
  a.cmp(local("stepsLeft"), 0);
  a.j("g", nextGroup);
  emitStore(code, panels);
}

/** 32 values of depth of all panels. */
function emitStep(code: Code, panels: number): void {
  const { a, core, rows } = code;
  const perVector = wordsPerVector(core.format);
  const vectors = STEP_WORDS / perVector;
  for (let vector = 0; vector < vectors; vector++) {
    for (let panel = 0; panel < panels; panel++) {
      const at = panelAt([AT.codes, AT.panelBytes, AT.panelBytes3], panel, 64 * vector);
      emitExpand(a, core.format, at, (word, register) => {
        for (let row = 0; row < rows; row++) {
          const x = bcst(mem(AT.x, ((vector * perVector + word) * rows + row) * 4));
          a.v("vdpbf16ps", [sumOf(code, row, panel), register, x]);
        }
      });
    }
  }
  a.add(AT.codes, 64 * vectors);
  a.add(AT.x, STEP_WORDS * rows * 4);
}

/** A group's sums, their offset and scale, into the totals. */
function emitPromotion(code: Code, panels: number): void {
  const { a, core, rows, local } = code;
  if (core.hasOffsets) {
    emitOffsetPointer(a, AT.offsets, AT.scales);
    a.mov(r.rdx, AT.scalesBytes);
    a.shr(r.rdx, 1);
  }
  for (let panel = 0; panel < panels; panel++) {
    emitLoadScales(a, core, SCALE, panelAt([AT.scales, AT.scalesBytes, AT.scalesBytes3], panel));
    if (core.hasOffsets) {
      emitLoadOffsets(a, OFFSET, mem(AT.offsets));
      a.add(AT.offsets, r.rdx);
    }
    for (let row = 0; row < rows && core.hasOffsets; row++) {
      a.v("vfmadd231ps", [sumOf(code, row, panel), OFFSET, bcst(mem(AT.groupSums, row * 4))]);
    }
    emitEither(a, local("adds"), (adds) => {
      for (let row = 0; row < rows; row++) {
        const [total, sum] = [totalOf(code, row, panel), sumOf(code, row, panel)];
        if (adds) a.v("vfmadd231ps", [total, sum, SCALE]);
        else a.v("vmulps", [total, sum, SCALE]);
      }
    });
  }
}

/** Lanes of each panel whose columns exist, in k1 and up. */
function emitMasks({ a, local }: Code, panels: number): void {
  a.mov(AT.steps, local("columnsLeft"));
  a.mov(r.rax, -1);
  a.mov(r.rdx, 64);
  a.cmp(AT.steps, r.rdx);
  a.cmov("l", r.rdx, AT.steps);
  a.bzhi(r.rax, r.rax, r.rdx);
  for (let panel = 0; panel < panels; panel++) {
    a.kmovw(k(1 + panel), r.rax);
    if (panel + 1 < panels) a.shr(r.rax, 16);
  }
}

/** What the output holds, where it is added to. */
function emitLoadTotals(code: Code, panels: number): void {
  const { a, local } = code;
  const done = a.label();
  a.cmp(local("adds"), 0);
  a.j("e", done);
  emitEachTotal(code, panels, (total, at, panel) => {
    a.v("vmovups", [total, at], merging(k(1 + panel)));
  });
  a.bind(done);
}

function emitStore(code: Code, panels: number): void {
  emitEachTotal(code, panels, (total, at, panel) => {
    code.a.v("vmovups", [at, total], merging(k(1 + panel)));
  });
}

/** Every total of a row that exists, and its place in the output; clobbers rax, rdx and `steps`. */
function emitEachTotal(
  code: Code,
  panels: number,
  emit: (total: Vector, at: Memory, panel: number) => void,
): void {
  const { a, rows, local } = code;
  const done = a.label();
  a.mov(AT.offsets, local("outWindow"));
  loadSlot(a, AT.steps, BLOCK_AT.rows);
  loadSlot(a, r.rdx, BLOCK_AT.outStrideBytes);
  for (let row = 0; row < rows; row++) {
    if (row > 0) {
      a.cmp(AT.steps, row);
      a.j("le", done);
    }
    for (let panel = 0; panel < panels; panel++) {
      emit(totalOf(code, row, panel), mem(AT.offsets, 64 * panel), panel);
    }
    a.add(AT.offsets, r.rdx);
  }
  a.bind(done);
}
