/**
 * @file Packing of FP8 codes for AMX tiles: operands become the bf16 that tiles hold.
 *
 *     A   tile[unit][32 lanes][16 words]     32 lanes (rows) a panel: two tiles a unit
 *     B   panel[words of depth][32 lanes]    32 lanes (columns) a panel
 *
 * A word is two bf16 of neighbouring depth, a unit 16 words. Everything is rearranged while it is a
 * byte an element, and widened last. There are two routines for each operand, by what is contiguous
 * in it, its depth or its lanes. They read nothing outside the operand. Depth is filled up with
 * zeros to whole units; lanes that do not exist hold anything, for no result is stored for them.
 * Panels are written in rising order, up to PACK_SLACK_BYTES beyond the last.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import {
  type Gp,
  k,
  mem,
  merging,
  r,
  type Vector,
  xmm,
  ymm,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import { emitWords, PACK_ARGUMENTS } from "../matmul/x64-pack.ts";
import { CODE_ORDER, emitWidenCodes } from "./x64-code-tables.ts";

/** Lanes of a panel. */
export const PANEL_LANES = 32;
/** Elements of depth that panels are filled up to. */
export const UNIT_DEPTH = 32;
/** Bytes of a panel's unit, and of one word of depth of it. */
const UNIT_BYTES = PANEL_LANES * UNIT_DEPTH * 2;
const WORD_BYTES = PANEL_LANES * 4;

const { source, strideBytes, panels, lanes, depth } = PACK_ARGUMENTS;
/** Scratch of `emitWidenCodes`. */
const [LOW, HIGH] = [zmm(22), zmm(23)];

/** mask = the low min(count, most) bits, `most` below 64; clobbers rdx. */
function emitMask(a: X64, mask: Gp, count: Gp, most: number): void {
  a.mov(mask, -1);
  a.mov(r.rdx, most);
  a.cmp(count, r.rdx);
  a.cmov("l", r.rdx, count);
  a.bzhi(mask, mask, r.rdx);
}

/**
 * Emits `step` for 64 elements of depth at a time, and for those left over with k1 masking what
 * exists of them; `advance` follows each full step. Clobbers `left`, which has the depth.
 */
function emitRowsOfCodes(
  a: X64,
  left: Gp,
  step: (load: (to: Vector, from: Gp) => void) => void,
  advance: () => void,
): void {
  const done = a.label();
  a.sub(left, 63);
  a.countdown(left, 64, () => {
    step((to, from) => a.v("vmovdqu8", [to, mem(from)]));
    advance();
  });
  a.add(left, 63);
  a.cmp(left, 0);
  a.j("le", done);
  emitMask(a, r.rax, left, 63);
  a.kmovq(k(1), r.rax);
  step((to, from) => a.v("vmovdqu8", [to, mem(from)], zeroing(k(1))));
  a.bind(done);
}

/**
 * A, depth contiguous: source[lane][depth], at most one panel. Order of codes: "row". The next
 * panel's rows are asked for. What is written follows on itself: along a row first, it would meet
 * in a few sets of the cache.
 */
export function emitPackRows(a: X64): void {
  const [base, from, to, left, row, panelAhead] = [r.rbx, r.r12, r.r14, r.r15, r.rbp, r.r13];
  const codes = zmm(0);
  a.mov(base, panels);
  a.mov(left, depth);
  a.imul(panelAhead, strideBytes, PANEL_LANES);
  const step = (load: (to: Vector, from: Gp) => void): void => {
    a.mov(from, source);
    a.mov(to, base);
    a.mov(row, lanes);
    a.countdown(row, 1, () => {
      load(codes, from);
      a.prefetch(mem(from, 0, panelAhead, 1), 1);
      a.v("vpermb", [codes, CODE_ORDER, codes]);
      emitWidenCodes(a, codes, LOW, HIGH);
      a.v("vmovups", [mem(to), codes]);
      a.v("vmovups", [mem(to, UNIT_BYTES), HIGH]);
      a.add(from, strideBytes);
      a.add(to, 64);
    });
  };
  emitRowsOfCodes(a, left, step, () => {
    a.add(source, 64);
    a.add(base, 2 * UNIT_BYTES);
  });
}

/**
 * The pairs of `at` become the low and the high half of their shuffle. Names move, not contents:
 * the last of `at` is spare.
 */
function emitShuffle(
  at: Vector[],
  pairs: readonly (readonly [number, number])[],
  emit: (to: Vector, half: 0 | 1, of: readonly [Vector, Vector]) => void,
): void {
  for (const [x, y] of pairs) {
    const [first, second, spare] = [at[x]!, at[y]!, at.at(-1)!];
    emit(spare, 0, [first, second]);
    emit(second, 1, [first, second]);
    at[x] = spare;
    at[at.length - 1] = first;
  }
}

/** Interleaves bytes, words or double words of pairs within each 128 bits. */
function emitInterleave(
  a: X64,
  unit: "bw" | "wd" | "dq",
  at: Vector[],
  pairs: readonly (readonly [number, number])[],
): void {
  const ops = [`vpunpckl${unit}`, `vpunpckh${unit}`] as const;
  emitShuffle(at, pairs, (to, half, of) => a.v(ops[half], [to, ...of]));
}

/** Even and odd quarters of pairs. */
function emitQuarters(a: X64, at: Vector[], pairs: readonly (readonly [number, number])[]): void {
  emitShuffle(at, pairs, (to, half, of) => {
    a.v("vshufi32x4", [to, ...of, half === 0 ? 0x88 : 0xdd]);
  });
}

/**
 * Sixteen rows of 64 codes, in zmm0 to zmm15, as words of depth: `store` gets each word's vector of
 * 16 lanes.
 */
function emitTransposeCodes(a: X64, store: (word: number, vector: Vector) => void): void {
  const at = Array.from({ length: 17 }, (_, index) => zmm(index));
  const quads = [0, 4, 8, 12];
  emitInterleave(
    a,
    "wd",
    at,
    quads.flatMap((q) => [[q, q + 1] as const, [q + 2, q + 3] as const]),
  );
  // Then four lanes of two neighbouring words in each 128 bits.
  emitInterleave(
    a,
    "dq",
    at,
    quads.flatMap((q) => [[q, q + 2] as const, [q + 1, q + 3] as const]),
  );
  emitQuarters(
    a,
    at,
    [0, 1, 2, 3].flatMap((t) => [[t, t + 4] as const, [t + 8, t + 12] as const]),
  );
  emitQuarters(
    a,
    at,
    [0, 1, 2, 3].flatMap((t) => [[t, t + 8] as const, [t + 4, t + 12] as const]),
  );
  for (let quarter = 0; quarter < 4; quarter++) {
    for (const [t, pair] of [0, 2, 1, 3].entries()) {
      const codes = at[4 * quarter + t]!;
      emitWidenCodes(a, codes, LOW, HIGH);
      store(8 * quarter + 2 * pair, codes);
      store(8 * quarter + 2 * pair + 1, HIGH);
    }
  }
}

/** bytes = those of a panel. */
function emitPanelBytes(a: X64, bytes: Gp): void {
  emitWords(a, bytes, depth, { dtype: "bf16", depthUnit: 16 });
  a.imul(bytes, bytes, WORD_BYTES);
}

/** B, depth contiguous: source[lane][depth]. The next 16 lanes are asked for. */
export function emitPackTransposed(a: X64): void {
  const [last, base, to, left, row, stop] = [r.r12, r.rbx, r.r14, r.r15, r.rbp, r.r13];
  const groupAhead = r.rcx;
  a.imul(groupAhead, strideBytes, 16);
  a.lea(last, mem(lanes, -1));
  a.imul(last, strideBytes);
  a.add(last, source);
  a.countdown(lanes, PANEL_LANES, () => {
    for (const group of [0, 16]) {
      const done = a.label();
      if (group > 0) {
        a.cmp(lanes, group);
        a.j("le", done);
      }
      a.imul(base, strideBytes, group);
      a.add(base, source);
      a.lea(to, mem(panels, group * 4));
      a.mov(left, depth);
      a.mov(stop, last);
      const step = (load: (to: Vector, from: Gp) => void): void => {
        a.mov(row, base);
        for (let lane = 0; lane < 16; lane++) {
          a.prefetch(mem(row, 0, groupAhead, 1));
          load(zmm(lane), row);
          a.add(row, strideBytes);
          a.cmp(row, stop);
          a.cmov("a", row, stop);
        }
        emitTransposeCodes(a, (word, vector) =>
          a.v("vmovups", [mem(to, word * WORD_BYTES), vector]),
        );
      };
      emitRowsOfCodes(a, left, step, () => {
        a.add(base, 64);
        a.add(stop, 64);
        a.add(to, 2 * UNIT_BYTES);
      });
      a.bind(done);
    }
    a.imul(base, strideBytes, PANEL_LANES);
    a.add(source, base);
    emitPanelBytes(a, base);
    a.add(panels, base);
  });
}

/** Two words of depth of 32 lanes to `to`: rows 0 and 2 in zmm0 and zmm2, 1 and 3 in 1 and 3. */
function emitPairRows(a: X64, to: Gp): void {
  for (const row of [0, 1]) {
    a.v("vinserti64x4", [zmm(row), zmm(row), ymm(row + 2), 1]);
    a.v("vpermb", [zmm(row), CODE_ORDER, zmm(row)]);
  }
  a.v("vpunpcklbw", [zmm(2), zmm(0), zmm(1)]);
  a.v("vpunpckhbw", [zmm(3), zmm(0), zmm(1)]);
  for (const [word, codes] of [zmm(2), zmm(3)].entries()) {
    emitWidenCodes(a, codes, LOW, HIGH);
    a.v("vmovups", [mem(to, word * WORD_BYTES), codes]);
    a.v("vmovups", [mem(to, word * WORD_BYTES + 64), HIGH]);
  }
  a.add(to, 2 * WORD_BYTES);
}

/**
 * B, lanes contiguous: source[depth][lane]. Order of codes: "lanes". Goes through all panels for a
 * unit of depth before the next, since a line of memory has lanes of two panels.
 */
export function emitPackLanes(a: X64): void {
  const [lanesLeft, panelBytes, columns, from] = [r.rbx, r.rbp, r.r12, r.r13];
  const [rowsLeft, panel, to, end] = [r.r14, r.r15, r.rax, r.rcx];
  emitPanelBytes(a, panelBytes);
  a.countdown(depth, UNIT_DEPTH, () => {
    a.mov(columns, source);
    a.mov(panel, panels);
    a.mov(lanesLeft, lanes);
    a.countdown(lanesLeft, PANEL_LANES, () => {
      emitMask(a, r.rax, lanesLeft, PANEL_LANES);
      a.kmovd(k(1), r.rax);
      a.mov(from, columns);
      a.mov(to, panel);
      a.lea(end, mem(panel, UNIT_BYTES));
      a.mov(rowsLeft, UNIT_DEPTH);
      a.cmp(depth, rowsLeft);
      a.cmov("l", rowsLeft, depth);
      emitRowsOfLanes(a, { from, to, end, rowsLeft });
      a.add(columns, PANEL_LANES);
      a.add(panel, panelBytes);
    });
    a.imul(r.rax, strideBytes, UNIT_DEPTH);
    a.add(source, r.rax);
    a.add(panels, UNIT_BYTES);
  });
}

/** `rowsLeft` rows of a panel, then zeros up to `end`. */
function emitRowsOfLanes(
  a: X64,
  at: { readonly from: Gp; readonly to: Gp; readonly end: Gp; readonly rowsLeft: Gp },
): void {
  const { from, to, end, rowsLeft } = at;
  const third = r.rdx;
  const load = (row: number): void => {
    const places = [
      mem(from),
      mem(from, 0, strideBytes, 1),
      mem(third),
      mem(third, 0, strideBytes, 1),
    ];
    a.v("vmovdqu8", [ymm(row), places[row]!], zeroing(k(1)));
  };
  a.sub(rowsLeft, 3);
  a.countdown(rowsLeft, 4, () => {
    a.lea(third, mem(from, 0, strideBytes, 2));
    for (let row = 0; row < 4; row++) load(row);
    emitPairRows(a, to);
    a.lea(from, mem(third, 0, strideBytes, 2));
  });
  a.add(rowsLeft, 3);
  const [next, done] = [a.label(), a.label()];
  a.bind(next);
  a.cmp(to, end);
  a.j("ae", done);
  a.lea(third, mem(from, 0, strideBytes, 2));
  for (let row = 0; row < 4; row++) {
    const missing = a.label();
    a.v("vpxord", [zmm(row), zmm(row), zmm(row)]);
    a.cmp(rowsLeft, row);
    a.j("le", missing);
    load(row);
    a.bind(missing);
  }
  a.mov(rowsLeft, 0);
  emitPairRows(a, to);
  a.jmp(next);
  a.bind(done);
}

/**
 * A, lanes contiguous: source[depth][lane]. Goes through all lanes for a unit of depth before the
 * next, since a line of memory has lanes of two panels; the next unit's rows are asked for before.
 */
export function emitPackTurned(a: X64): void {
  const [columns, to, lanesLeft] = [r.r12, r.r14, r.r15];
  const [toNextTile, panelBytes] = [r.rbx, r.rcx];
  // Quarters of a vector, in double words.
  for (const quarter of [1, 2, 3]) {
    a.mov(r.rax, 0xf << (4 * quarter));
    a.kmovw(k(4 + quarter), r.rax);
  }
  emitPanelBytes(a, panelBytes);
  a.countdown(depth, UNIT_DEPTH, () => {
    emitAskForUnit(a);
    a.mov(columns, source);
    a.mov(to, panels);
    a.mov(toNextTile, UNIT_BYTES / 2);
    a.mov(lanesLeft, lanes);
    a.countdown(lanesLeft, 16, () => {
      const [ragged, done] = [a.label(), a.label()];
      a.cmp(lanesLeft, 16);
      a.j("l", ragged);
      a.cmp(depth, UNIT_DEPTH);
      a.j("l", ragged);
      emitTurnedTile(a, columns, to, false);
      a.jmp(done);
      a.bind(ragged);
      emitMask(a, r.rax, lanesLeft, 16);
      for (let quarter = 0; quarter < 4; quarter++) {
        a.kmovq(k(1 + quarter), r.rax);
        if (quarter < 3) a.shl(r.rax, 16);
      }
      emitTurnedTile(a, columns, to, true);
      a.bind(done);
      a.add(columns, 16);
      // A panel has two tiles a unit, side by side.
      a.add(to, toNextTile);
      a.neg(toNextTile);
      a.add(toNextTile, panelBytes);
    });
    a.imul(r.rax, strideBytes, UNIT_DEPTH);
    a.add(source, r.rax);
    a.add(panels, UNIT_BYTES);
  });
}

/** Asks for two lines of each row of the unit behind `source`'s, if there is one. */
function emitAskForUnit(a: X64): void {
  const [row, left] = [r.r13, r.rbp];
  const none = a.label();
  a.cmp(depth, UNIT_DEPTH);
  a.j("le", none);
  a.imul(row, strideBytes, UNIT_DEPTH);
  a.add(row, source);
  a.mov(left, UNIT_DEPTH);
  a.countdown(left, 1, () => {
    for (const line of [0, 64]) a.prefetch(mem(row, line));
    a.add(row, strideBytes);
  });
  a.bind(none);
}

/**
 * A unit of depth of 16 lanes, from `columns` on, into the tile at `to`. `isRagged`: as many rows
 * as `depth` says, lanes under k1 to k4, a quarter of the depth each; else all exist.
 */
function emitTurnedTile(a: X64, columns: Gp, to: Gp, isRagged: boolean): void {
  const rows = [r.r13, r.rbp, r.rdx, r.rax];
  const at = Array.from({ length: 9 }, (_, index) => zmm(index));
  for (const [quarter, row] of rows.entries()) {
    a.imul(row, strideBytes, 8 * quarter);
    a.add(row, columns);
  }
  for (let row = 0; row < 8; row++) {
    if (isRagged) a.v("vpxord", [at[row]!, at[row]!, at[row]!]);
    for (const [quarter, place] of rows.entries()) {
      const missing = a.label();
      if (isRagged) {
        a.cmp(depth, 8 * quarter + row);
        a.j("le", missing);
        a.v("vmovdqu8", [at[row]!, mem(place, -16 * quarter)], merging(k(1 + quarter)));
      } else if (quarter === 0) a.v("vmovups", [xmm(row), mem(place)]);
      else a.v("vbroadcastf32x4", [at[row]!, mem(place)], merging(k(4 + quarter)));
      a.bind(missing);
      a.add(place, strideBytes);
    }
  }
  emitInterleave(a, "bw", at, [
    [0, 1],
    [2, 3],
    [4, 5],
    [6, 7],
  ]);
  emitInterleave(a, "wd", at, [
    [0, 2],
    [4, 6],
    [1, 3],
    [5, 7],
  ]);
  emitInterleave(a, "dq", at, [
    [0, 4],
    [2, 6],
    [1, 5],
    [3, 7],
  ]);
  // Then two neighbouring lanes in each vector, a quarter of their depth in each 128 bits.
  for (const [pair, index] of [0, 4, 2, 6, 1, 5, 3, 7].entries()) {
    emitWidenCodes(a, at[index]!, LOW, HIGH);
    a.v("vmovups", [mem(to, 2 * pair * 64), at[index]!]);
    a.v("vmovups", [mem(to, (2 * pair + 1) * 64), HIGH]);
  }
}
