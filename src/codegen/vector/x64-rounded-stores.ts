/**
 * @file Stores that round to bf16 by the processor's own instruction, where it has one
 * (AVX512_BF16).
 *
 * The recorder rounds in integers, eight instructions a vector, so that every target stores the
 * same bits. `vcvtneps2bf16` does too, but for subnormal numbers, which it takes for zero: a vector
 * that holds one takes the long way, which stands out of line.
 */
import type { X64 } from "../x64/assembler.ts";
import { type MaskRegister, type Memory, merging, r, type Vector, ymm } from "../x64/operands.ts";
import { type Instruction, inputsOf, type RowProgram, type Value } from "./program.ts";

/** A program's stores of rounded values, by the values before rounding. */
export function withRoundedStores(program: RowProgram): RowProgram {
  const instructions = program.instructions.map(
    (instruction): Instruction =>
      instruction.op === "store" && instruction.rounded !== undefined
        ? { op: "storeRounded", operand: instruction.operand, a: instruction.rounded }
        : instruction,
  );
  const needed = new Set<Value>();
  const keep = (values: readonly Value[]): Value[] => {
    const kept: Value[] = [];
    for (const value of values.toReversed()) {
      const instruction = instructions[value]!;
      if (isArithmetic(instruction) && !needed.has(value)) continue;
      if (instruction.op === "columns") {
        for (const reduction of instruction.reductions) {
          needed.add(reduction.a);
          if (reduction.kind === "sumOfProducts") needed.add(reduction.b);
        }
        instructions[value] = { ...instruction, body: keep(instruction.body) };
      }
      for (const input of inputsOf(instruction)) needed.add(input);
      kept.unshift(value);
    }
    return kept;
  };
  const body = keep(program.body);
  return { ...program, instructions, body };
}

/** What rounding in integers is made of. */
function isArithmetic({ op }: Instruction): boolean {
  return ["and", "or", "integerAdd", "shiftRight", "select"].includes(op);
}

const CLASS_SUBNORMAL = 0x20;
const UNORDERED = 3;
const HALF_BITS = 16;
const BF16_ROUNDING = 0x7fff;
const BF16_QUIET_BIT = 0x40;

/** What a store rounds, where it goes, and two registers for it. */
export interface RoundedStore {
  readonly source: Vector;
  readonly target: Memory;
  /** Of the target's elements, if not all are written. */
  readonly tail: MaskRegister | null;
  readonly free: readonly [Vector, Vector];
  readonly condition: MaskRegister;
}

/** Emits the store; what it returns emits the long way, behind the code. Clobbers rax there. */
export function emitRoundedStore(a: X64, store: RoundedStore): () => void {
  const { source, target, tail, free, condition } = store;
  const [bits, other] = free;
  const [long, ready] = [a.label(), a.label()];
  const narrow = ymm(bits.index);
  a.v("vfpclassps", [condition, source, CLASS_SUBNORMAL]);
  a.kortestw(condition, condition);
  a.j("nz", long);
  a.v("vcvtneps2bf16", [narrow, source]);
  a.bind(ready);
  a.v("vmovdqu16", [target, narrow], tail === null ? null : merging(tail));
  return () => {
    const splat = (value: number): void => {
      a.mov(r.rax, value);
      a.v("vpbroadcastd r32", [other, r.rax]);
    };
    a.bind(long);
    splat(1);
    a.v("vpsrld", [bits, source, HALF_BITS]);
    a.v("vpandd", [bits, bits, other]);
    a.v("vpaddd", [bits, bits, source]);
    splat(BF16_ROUNDING);
    a.v("vpaddd", [bits, bits, other]);
    a.v("vpsrld", [bits, bits, HALF_BITS]);
    splat(BF16_QUIET_BIT);
    a.v("vcmpps", [condition, source, source, UNORDERED]);
    a.v("vpsrld", [bits, source, HALF_BITS], merging(condition));
    a.v("vpord", [bits, bits, other], merging(condition));
    a.v("vpmovdw", [narrow, bits]);
    a.jmp(ready);
  };
}
