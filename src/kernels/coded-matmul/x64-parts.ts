/**
 * @file What both machine-code products of coded weights share: their slots, the packed rows of
 * `a`, the sums of each group of it, and a panel's scales and offsets.
 *
 * The slots are those of matmul/x64-block.ts. Here `b` is the first panel of codes and
 * `bStrideBytes` a panel's bytes; `bScales` and `bScalesPanelBytes` its scales and a panel's bytes
 * of them, `bConstants` the offsets, which take half as many; `aScales` the sums of the groups of
 * `a`, `aConstants` the tables, `pieceWords` the words of depth in a group.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { bcst, type Gp, mem, r, type Vector, zmm } from "../../codegen/x64/operands.ts";
import type { CodedFormat } from "../../tensor/coded-weight.ts";
import { BLOCK_AT, loadAddress } from "../matmul/x64-block.ts";
import { emitWords, type PanelFormat } from "../matmul/x64-pack.ts";
import { ONES_AT } from "./x64-expand.ts";

/** What machine code multiplies here. */
export interface CodedCore {
  readonly format: CodedFormat;
  readonly hasOffsets: boolean;
}

/** `a` in panels of `width` rows, filled up with zeros to whole steps. */
export function rowFormat(width: number): PanelFormat {
  return { dtype: "bf16", source: "bf16", depthUnit: 16, layout: "words", width };
}

/** Bytes of a panel's scales in one group. */
export function scaleBytes({ format }: CodedCore): 32 | 64 {
  return format === "e4m3" ? 64 : 32;
}

/** The sums of each group of packed `a`, if asked for: sums[panel][group][width]. */
export function emitGroupSums(a: X64, { hasOffsets }: CodedCore, format: PanelFormat): void {
  if (!hasOffsets) return;
  const { width } = format;
  const [panels, words, sums, constants] = [r.rsi, r.r8, r.r9, r.r10];
  const [rows, wordsLeft, pieceWords, inPiece] = [r.r11, r.rbx, r.rbp, r.r12];
  loadAddress(a, panels, "aPanels");
  loadSlot(a, r.rax, BLOCK_AT.depth);
  emitWords(a, words, r.rax, format);
  loadSlot(a, sums, BLOCK_AT.aScales);
  loadSlot(a, constants, BLOCK_AT.aConstants);
  loadSlot(a, pieceWords, BLOCK_AT.pieceWords);
  loadSlot(a, rows, BLOCK_AT.rows);
  const sum = zmm(0);
  a.countdown(rows, width, () => {
    const next = a.label();
    a.mov(wordsLeft, words);
    a.bind(next);
    a.mov(inPiece, pieceWords);
    a.cmp(inPiece, wordsLeft);
    a.cmov("g", inPiece, wordsLeft);
    a.sub(wordsLeft, inPiece);
    a.v("vpxord", [sum, sum, sum]);
    a.countdown(inPiece, 1, () => {
      a.v("vmovups", [zmm(1), mem(panels)]);
      a.v("vdpbf16ps", [sum, zmm(1), bcst(mem(constants, ONES_AT))]);
      a.add(panels, width * 4);
    });
    // Wider than a group's sums: written in rising order.
    a.v("vmovups", [mem(sums), sum]);
    a.add(sums, width * 4);
    a.cmp(wordsLeft, 0);
    a.j("g", next);
  });
}

/** Scales of 16 rows. */
export function emitLoadScales(
  a: X64,
  core: CodedCore,
  to: Vector,
  at: ReturnType<typeof mem>,
): void {
  if (core.format === "e4m3") {
    a.v("vmovups", [to, at]);
    return;
  }
  a.v("vpmovzxwd", [to, at]);
  a.v("vpslld", [to, to, 16]);
}

/** Offsets of 16 rows, as f32. */
export function emitLoadOffsets(a: X64, to: Vector, at: ReturnType<typeof mem>): void {
  a.v("vpmovsxbd", [to, at]);
  a.v("vcvtdq2ps", [to, to]);
}

/** pointer = where the offsets stand that belong to the scales at `scales`; clobbers rax. */
export function emitOffsetPointer(a: X64, pointer: Gp, scales: Gp): void {
  loadSlot(a, r.rax, BLOCK_AT.bScales);
  a.mov(pointer, scales);
  a.sub(pointer, r.rax);
  a.shr(pointer, 1);
  loadSlot(a, r.rax, BLOCK_AT.bConstants);
  a.add(pointer, r.rax);
}
