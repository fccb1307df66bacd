/**
 * @file The softmax of a lane group's scores of one block, in powers of two: log₂ e is in the
 * queries. A vector is a key, a lane a query row, so that nothing is summed across lanes.
 *
 *     top' = max(top, scores)    weight = 2^(score − top')
 *     total' = total · 2^(top − top') + Σ weight
 *
 * A row that sees none of a block's keys keeps its top and total. NaN is passed over by `top` and
 * reaches the row through its weight.
 */
import { EXP2 } from "../../codegen/vector/math.ts";
import { k, mem, merging, r, type Vector, zmm } from "../../codegen/x64/operands.ts";
import {
  BLOCK_KEYS,
  constant,
  DEPTH,
  emitSplitPair,
  inGroup,
  inScratch,
  KEPT,
  LANES,
  LINE_BYTES,
  PARTS,
  TILE_BYTES,
  type TiledCode,
} from "./x64-frame.ts";

/** What the block before has to be multiplied with, until the block is joined to it. */
export const FACTOR: Vector = zmm(30);

/** Minus infinity for the keys that a row does not see. */
export function emitHideKeys({ a, at, start }: TiledCode): void {
  const [first, to, left] = [r.rax, r.rdx, r.rcx];
  const [limits, key, one, infinity] = [zmm(0), zmm(1), zmm(2), zmm(3)];
  const done = a.label();
  // Rows see more keys from one to the next: those that the first sees, all see.
  a.movsxd(first, mem(KEPT.limits));
  a.sub(first, start);
  a.mov(left, BLOCK_KEYS);
  a.cmp(first, left);
  a.j("ge", done);
  a.mov(to, 0);
  a.cmp(first, to);
  a.cmov("l", first, to);
  a.sub(left, first);
  a.imul(to, first, LINE_BYTES);
  a.lea(to, mem(to, at.scores, KEPT.scratch, 1));
  a.add(first, start);
  a.v("vmovups", [limits, mem(KEPT.limits)]);
  a.v("vpbroadcastd r32", [key, first]);
  a.mov(r.rax, 1);
  a.v("vpbroadcastd r32", [one, r.rax]);
  a.mov(r.rax, MINUS_INFINITY);
  a.v("vpbroadcastd r32", [infinity, r.rax]);
  a.countdown(left, 1, () => {
    a.v("vpcmpd", [k(1), limits, key, LESS_OR_EQUAL]);
    a.v("vmovups", [mem(to), infinity], merging(k(1)));
    a.v("vpaddd", [key, key, one]);
    a.add(to, LINE_BYTES);
  });
  a.bind(done);
}

/** Bits of −∞. */
export const MINUS_INFINITY: number = 0xff800000 | 0;
const LESS_OR_EQUAL = 2;
const MAX_UNROLL = 8;

const EXP2_AT = { least: zmm(20), shift: zmm(21), coefficients: 22, upperHalf: zmm(28) } as const;

/** Scores to weights in parts; the group's top and total; `FACTOR`. */
export function emitSoftmax(code: TiledCode): void {
  const { a, at } = code;
  const { top, total } = at.ofGroup;
  const [from, to, left] = [r.rsi, r.rdx, r.rcx];
  const tops = [zmm(0), zmm(1), zmm(2), zmm(3)];
  emitLoadConstants(code);
  for (const each of tops) a.v("vmovups", [each, inGroup(top)]);
  a.lea(from, inScratch(at.scores));
  a.mov(left, BLOCK_KEYS);
  a.countdown(left, MAX_UNROLL, () => {
    for (let key = 0; key < MAX_UNROLL; key++) {
      const score = zmm(8 + key);
      a.v("vmovups", [score, mem(from, key * LINE_BYTES)]);
      // The second one is taken if either is NaN.
      a.v("vmaxps", [tops[key % 4]!, score, tops[key % 4]!]);
    }
    a.add(from, MAX_UNROLL * LINE_BYTES);
  });
  a.v("vmaxps", [tops[0]!, tops[0]!, tops[1]!]);
  a.v("vmaxps", [tops[2]!, tops[2]!, tops[3]!]);
  const newTop = zmm(0);
  a.v("vmaxps", [newTop, tops[0]!, tops[2]!]);
  a.v("vmovups", [FACTOR, inGroup(top)]);
  a.v("vmovups", [inGroup(top), newTop]);
  a.v("vsubps", [FACTOR, FACTOR, newTop]);
  emitExp2(code, FACTOR, zmm(5), zmm(6));
  const sums = [zmm(16), zmm(17), zmm(18), zmm(19)];
  for (const sum of sums) a.v("vpxord", [sum, sum, sum]);
  a.lea(from, inScratch(at.scores));
  a.lea(to, inScratch(at.weights));
  a.mov(left, LANES);
  a.countdown(left, 1, () => {
    for (let half = 0; half < BLOCK_KEYS / DEPTH; half++) {
      const pair = [0, 1].map((index) => {
        const weight = zmm(8 + index);
        const score = mem(from, (half * DEPTH + index * LANES) * LINE_BYTES);
        a.v("vmovups", [weight, score]);
        a.v("vsubps", [weight, weight, newTop]);
        emitExp2(code, weight, zmm(10 + 2 * index), zmm(11 + 2 * index));
        const sum = sums[2 * half + index]!;
        a.v("vaddps", [sum, sum, weight]);
        return weight;
      }) as [Vector, Vector];
      emitSplitPair(a, pair, { mask: EXP2_AT.upperHalf, spare: zmm(14) }, (part, word) =>
        a.v("vmovups", [mem(to, (half * PARTS + part) * TILE_BYTES), word]),
      );
    }
    a.add(from, LINE_BYTES);
    a.add(to, LINE_BYTES);
  });
  a.v("vaddps", [sums[0]!, sums[0]!, sums[1]!]);
  a.v("vaddps", [sums[2]!, sums[2]!, sums[3]!]);
  a.v("vaddps", [sums[0]!, sums[0]!, sums[2]!]);
  a.v("vmovups", [zmm(1), inGroup(total)]);
  a.v("vfmadd213ps", [zmm(1), FACTOR, sums[0]!]);
  a.v("vmovups", [inGroup(total), zmm(1)]);
}

function emitLoadConstants(code: TiledCode): void {
  const { a } = code;
  a.v("vbroadcastss", [EXP2_AT.least, constant(code, "least")]);
  a.v("vbroadcastss", [EXP2_AT.shift, constant(code, "shift")]);
  a.v("vbroadcastss", [EXP2_AT.upperHalf, constant(code, "upperHalf")]);
  for (const [index, name] of (["c5", "c4", "c3", "c2", "c1", "c0"] as const).entries()) {
    a.v("vbroadcastss", [zmm(EXP2_AT.coefficients + index), constant(code, name)]);
  }
}

/** x = 2^x for x at most 0, as `exp2OfNonPositive` has it. */
function emitExp2({ a }: TiledCode, x: Vector, shifted: Vector, power: Vector): void {
  const { least, shift, coefficients } = EXP2_AT;
  a.v("vmaxps", [x, least, x]);
  a.v("vaddps", [shifted, x, shift]);
  a.v("vsubps", [power, shifted, shift]);
  a.v("vsubps", [x, x, power]);
  a.v("vmovaps", [power, zmm(coefficients)]);
  for (let index = 1; index < EXP2.polynomial.length; index++) {
    a.v("vfmadd213ps", [power, x, zmm(coefficients + index)]);
  }
  a.v("vpslld", [shifted, shifted, EXP2.fractionBits]);
  a.v("vmulps", [x, power, shifted]);
}
