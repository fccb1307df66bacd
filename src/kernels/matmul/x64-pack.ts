/**
 * @file Packing for the x64 matrix products: operands rearranged into panels that a core reads in
 * order.
 *
 *     panel[p][d][lane] = operand(lane = p·width + lane, depth d)       32-bit words
 *
 *   lane   a row of A, or a column of B
 *   d      depth in words: one f32, or two bf16 of neighbouring k (an odd last one with 0), or one
 *          bf16 widened to f32, for processors without products of bf16; FP8 codes are widened to
 *          bf16 first (x64-widen.ts)
 *
 * Two routines, by what is contiguous in the operand: depth (`transposing`: 16×16 words through
 * registers) or lanes (`copying`), and a third for the tiles that AMX wants of A (`tile`). They
 * read nothing outside the operand: depth tails are masked, and lanes beyond the last repeat the
 * last (transposing) or are zero (copying); no result is ever stored for them. They may write up to
 * PACK_SLACK_BYTES beyond the last panel, since a vector is wider than a row of a panel; panels are
 * written in rising order, so that nothing is lost.
 */
import { assert } from "../../base/errors.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import {
  type Gp,
  k,
  type Mask,
  type Memory,
  mem,
  merging,
  r,
  type Vector,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import { emitWiden, type Fp8SourceDType } from "./x64-widen.ts";

/** What cores multiply. */
export type X64InputDType = "f32" | "bf16";
/** What operands are stored as. */
export type X64SourceDType = X64InputDType | Fp8SourceDType;

export const PACK_SLACK_BYTES = 8192;

/**
 * Where a packing routine finds its arguments; it clobbers them, rax, rdx and the registers below.
 */
export const PACK_ARGUMENTS: Readonly<
  Record<"source" | "strideBytes" | "panels" | "lanes" | "depth", Gp>
> = { source: r.rsi, strideBytes: r.r8, panels: r.r9, lanes: r.r10, depth: r.r11 };

/** One panel format: how many lanes stand side by side, and what they are made of. */
export interface PanelFormat {
  readonly width: number;
  /** What the words are made of. */
  readonly dtype: X64InputDType;
  /** What the operand is made of: as `dtype`, or something narrower that is widened on the way. */
  readonly source: X64SourceDType;
  /** Panels are this many words deep or a multiple; words beyond the depth are zero. */
  readonly depthUnit: 1 | 16;
  /** `words`: panel[d][lane]. `tiles`: blocks of 16 words, in each 16×16 tiles, tile[lane][d]. */
  readonly layout: "words" | "tiles";
}

/** Elements in one 32-bit word. */
export function elementsPerWord(dtype: X64InputDType): 1 | 2 {
  return dtype === "f32" ? 1 : 2;
}

/** Bytes of an element of an operand. */
export function sourceBytes(source: X64SourceDType): 1 | 2 | 4 {
  if (source === "f32") return 4;
  return source === "bf16" ? 2 : 1;
}

function isFp8(source: X64SourceDType): source is Fp8SourceDType {
  return sourceBytes(source) === 1;
}

/** Where packing routines of FP8 find the constants of widening; set by `PackContext`. */
const CONSTANTS = r.rdx;

/** What packing needs to know of the kernel around it. */
export interface PackContext {
  /** Emits: a register = the address of the operand's widening constants. FP8 operands only. */
  readonly loadConstants?: (to: Gp) => void;
}

/** The address of the constants where widening will want it; rdx is free once masks are made. */
function emitLoadConstants(format: PanelFormat, { loadConstants }: PackContext): void {
  if (!isFp8(format.source)) return;
  assert(loadConstants !== undefined, "packing FP8 needs the constants of its widening");
  loadConstants(CONSTANTS);
}

/** 16 f32 from memory under `mask`; bf16 are their high halves. */
export function emitLoadF32(
  a: X64,
  to: Vector,
  from: Memory,
  mask: Mask | null,
  source: X64SourceDType,
): void {
  if (source === "f32") {
    a.v("vmovups", [to, from], mask);
    return;
  }
  if (isFp8(source)) {
    a.v("vpmovzxbd", [to, from], mask);
    emitWiden(a, to, source, CONSTANTS);
  } else a.v("vpmovzxwd", [to, from], mask);
  a.v("vpslld", [to, to, 16]);
}

/** 32 bf16 from memory under `mask`. */
function emitLoadBf16(a: X64, to: Vector, from: Memory, mask: Mask, source: X64SourceDType): void {
  if (isFp8(source)) {
    a.v("vpmovzxbw", [to, from], mask);
    emitWiden(a, to, source, CONSTANTS);
  } else a.v("vmovdqu16", [to, from], mask);
}

/** mask = the low min(count, 63) bits, in `mask`; clobbers rdx. */
export function emitLowBits(a: X64, mask: Gp, count: Gp): void {
  a.mov(mask, -1);
  a.mov(r.rdx, 63);
  a.cmp(count, r.rdx);
  a.cmov("l", r.rdx, count);
  a.bzhi(mask, mask, r.rdx);
}

/**
 * Masks of `numVectors` neighbouring vectors of 16 lanes, in k1 and up, of which `count` lanes
 * exist.
 */
export function emitLaneMasks(a: X64, count: Gp, numVectors: number): void {
  emitLowBits(a, r.rax, count);
  for (let v = 0; v < numVectors; v++) {
    a.kmovw(k(1 + v), r.rax);
    if (v + 1 < numVectors) a.shr(r.rax, 16);
  }
}

/** Transpose 16×16 words: rows in zmm0..15, columns out in zmm0..15; clobbers zmm16..31. */
export function emitTranspose16(a: X64): void {
  for (let i = 0; i < 16; i += 2) {
    a.v("vpunpckldq", [zmm(16 + i), zmm(i), zmm(i + 1)]);
    a.v("vpunpckhdq", [zmm(17 + i), zmm(i), zmm(i + 1)]);
  }
  // Now 4×4 blocks within each 128 bits.
  for (let i = 0; i < 16; i += 4) {
    for (let half = 0; half < 2; half++) {
      const [x, y] = [zmm(16 + i + half), zmm(18 + i + half)];
      a.v("vpunpcklqdq", [zmm(i + 2 * half), x, y]);
      a.v("vpunpckhqdq", [zmm(i + 2 * half + 1), x, y]);
    }
  }
  // Quarters of 512 bits: once between groups of 4 rows, once between groups of 8.
  for (let q = 0; q < 4; q++) {
    for (let half = 0; half < 2; half++) {
      const [x, y] = [zmm(8 * half + q), zmm(8 * half + 4 + q)];
      a.v("vshufi32x4", [zmm(16 + 4 * q + 2 * half), x, y, 0x88]);
      a.v("vshufi32x4", [zmm(17 + 4 * q + 2 * half), x, y, 0xdd]);
    }
  }
  for (let q = 0; q < 4; q++) {
    for (let half = 0; half < 2; half++) {
      const [x, y] = [zmm(16 + 4 * q + half), zmm(18 + 4 * q + half)];
      a.v("vshufi32x4", [zmm(4 * half + q), x, y, 0x88]);
      a.v("vshufi32x4", [zmm(8 + 4 * half + q), x, y, 0xdd]);
    }
  }
}

/**
 * Load 16 words of depth of `numRows` lanes into zmm0..; k1 masks elements, `row` walks, `last`
 * stops it.
 */
function emitLoadLanes(
  a: X64,
  options: { row: Gp; last: Gp; stride: Gp; numRows: number; format: PanelFormat },
): void {
  const { row, last, stride, numRows, format } = options;
  for (let i = 0; i < numRows; i++) {
    if (format.dtype === "f32") emitLoadF32(a, zmm(i), mem(row), zeroing(k(1)), format.source);
    else emitLoadBf16(a, zmm(i), mem(row), zeroing(k(1)), format.source);
    if (i + 1 === numRows) return;
    a.add(row, stride);
    a.cmp(row, last);
    a.cmov("a", row, last);
  }
}

/** Depth contiguous: source[lane][depth]. */
export function emitTransposingPack(a: X64, format: PanelFormat, context: PackContext): void {
  const { width, dtype, layout } = format;
  const groupBytes = 16 * elementsPerWord(dtype) * sourceBytes(format.source);
  const { source, strideBytes, panels, lanes, depth } = PACK_ARGUMENTS;
  const [last, base, to, left, row, stop] = [r.r12, r.rbx, r.r14, r.r15, r.rbp, r.r13];
  const elements = 16 * elementsPerWord(dtype);
  a.lea(last, mem(lanes, -1));
  a.imul(last, strideBytes);
  a.add(last, source);
  a.countdown(lanes, width, () => {
    for (let group = 0; group < width; group += 16) {
      const done = a.label();
      if (group > 0) {
        a.cmp(lanes, group);
        a.j("le", done);
      }
      a.imul(base, strideBytes, group);
      a.add(base, source);
      a.lea(to, mem(panels, layout === "tiles" ? group * 64 : group * 4));
      a.mov(left, depth);
      a.mov(stop, last);
      a.countdown(left, elements, () => {
        emitLowBits(a, r.rax, left);
        a.kmovd(k(1), r.rax);
        emitLoadConstants(format, context);
        a.mov(row, base);
        const numRows = Math.min(16, width - group);
        emitLoadLanes(a, { row, last: stop, stride: strideBytes, numRows, format });
        if (layout === "words") emitTranspose16(a);
        const rowBytes = layout === "words" ? width * 4 : 64;
        for (let i = 0; i < 16; i++) a.v("vmovups", [mem(to, i * rowBytes), zmm(i)]);
        a.add(base, groupBytes);
        a.add(stop, groupBytes);
        a.add(to, 16 * width * 4);
      });
      a.bind(done);
    }
    a.imul(base, strideBytes, width);
    a.add(source, base);
    emitWords(a, base, depth, format);
    a.imul(base, base, width * 4);
    a.add(panels, base);
  });
}

/** words = depth of a panel in 32-bit words, for `depth` elements. */
export function emitWords(
  a: X64,
  words: Gp,
  depth: Gp,
  format: Pick<PanelFormat, "dtype" | "depthUnit">,
): void {
  const unit = elementsPerWord(format.dtype) * format.depthUnit;
  a.lea(words, mem(depth, unit - 1));
  a.shr(words, Math.log2(unit));
  a.shl(words, Math.log2(format.depthUnit));
}

/**
 * Depth copied at a time by `emitCopyingPack`: so few rows keep their pages in the translation
 * cache.
 */
const COPIED_DEPTH = 16;

/**
 * Lanes contiguous: source[depth][lane]. Goes through all panels for a few rows before the next
 * rows.
 */
export function emitCopyingPack(a: X64, format: PanelFormat, context: PackContext): void {
  const { width, dtype } = format;
  const { source, strideBytes, panels, lanes, depth } = PACK_ARGUMENTS;
  const [lanesLeft, panelBytes, columns, from] = [r.rbx, r.rbp, r.r12, r.r13];
  const [rowsLeft, panel, to] = [r.r14, r.r15, r.rax];
  const numVectors = Math.ceil(width / 16);
  const elementBytes = sourceBytes(format.source);
  // A vector wider than a row of the panel must not write into the next panel, which may be done.
  const lanesOf = (v: number): Mask | null => (width % 16 === 0 ? null : merging(k(1 + v)));
  if (format.depthUnit > 1) emitPadding(a, format);
  emitWords(a, panelBytes, depth, format);
  a.imul(panelBytes, panelBytes, width * 4);
  a.countdown(depth, COPIED_DEPTH, () => {
    a.mov(columns, source);
    a.mov(panel, panels);
    a.mov(lanesLeft, lanes);
    a.countdown(lanesLeft, width, () => {
      emitMin(a, rowsLeft, lanesLeft, width);
      emitLaneMasks(a, rowsLeft, numVectors);
      emitLoadConstants(format, context);
      emitMin(a, rowsLeft, depth, COPIED_DEPTH);
      a.mov(from, columns);
      a.mov(to, panel);
      const store = (): void => {
        for (let v = 0; v < numVectors; v++) a.v("vmovups", [mem(to, v * 64), zmm(v)], lanesOf(v));
        a.add(to, width * 4);
      };
      if (dtype === "bf16") {
        const rows = { from, left: rowsLeft, strideBytes };
        emitPairs(a, { ...rows, numVectors, store, source: format.source });
      } else {
        a.countdown(rowsLeft, 1, () => {
          for (let v = 0; v < numVectors; v++) {
            const at = mem(from, v * 16 * elementBytes);
            emitLoadF32(a, zmm(v), at, zeroing(k(1 + v)), format.source);
          }
          store();
          a.add(from, strideBytes);
        });
      }
      a.add(columns, width * elementBytes);
      a.add(panel, panelBytes);
    });
    a.imul(r.rax, strideBytes, COPIED_DEPTH);
    a.add(source, r.rax);
    a.add(panels, (COPIED_DEPTH / elementsPerWord(dtype)) * width * 4);
  });
}

/** Zero the words from the depth up to its unit, in every panel. */
function emitPadding(a: X64, format: PanelFormat): void {
  const { panels, lanes, depth } = PACK_ARGUMENTS;
  const [lanesLeft, panelBytes, to, missing, words] = [r.rbx, r.rbp, r.r12, r.r13, r.r14];
  const rowBytes = format.width * 4;
  emitWords(a, words, depth, { dtype: format.dtype, depthUnit: 1 });
  emitWords(a, panelBytes, depth, format);
  a.sub(panelBytes, words);
  a.mov(r.r15, panelBytes);
  a.add(panelBytes, words);
  a.imul(panelBytes, panelBytes, rowBytes);
  a.imul(words, words, rowBytes);
  a.add(words, panels);
  a.mov(lanesLeft, lanes);
  emitClear(a, 1);
  a.countdown(lanesLeft, format.width, () => {
    a.mov(to, words);
    a.mov(missing, r.r15);
    a.countdown(missing, 1, () => {
      for (let at = 0; at < rowBytes; at += 64) a.v("vmovups", [mem(to, at), zmm(0)]);
      a.add(to, rowBytes);
    });
    a.add(words, panelBytes);
  });
}

/** least = min(value, limit), signed. */
function emitMin(a: X64, least: Gp, value: Gp, limit: number): void {
  a.mov(least, limit);
  a.cmp(value, least);
  a.cmov("l", least, value);
}

/** Words of two bf16: row 2d in the low half, row 2d+1 in the high half. Masks in k1 and up. */
function emitPairs(
  a: X64,
  options: {
    readonly from: Gp;
    readonly left: Gp;
    readonly strideBytes: Gp;
    readonly numVectors: number;
    readonly source: X64SourceDType;
    readonly store: () => void;
  },
): void {
  const { from, left, strideBytes, numVectors, source, store } = options;
  const done = a.label();
  const extend = isFp8(source) ? "vpmovzxbd" : "vpmovzxwd";
  const vectorBytes = 16 * sourceBytes(source);
  const low = (v: number): void =>
    a.v(extend, [zmm(v), mem(from, v * vectorBytes)], zeroing(k(1 + v)));
  const widen = (v: number): void => {
    if (isFp8(source)) emitWiden(a, zmm(v), source, CONSTANTS);
  };
  a.sub(left, 1);
  a.countdown(left, 2, () => {
    for (let v = 0; v < numVectors; v++) {
      low(v);
      const second = mem(from, v * vectorBytes, strideBytes, 1);
      a.v(extend, [zmm(8 + v), second], zeroing(k(1 + v)));
      a.v("vpslld", [zmm(8 + v), zmm(8 + v), 16]);
      a.v("vpord", [zmm(v), zmm(v), zmm(8 + v)]);
      widen(v);
    }
    store();
    a.lea(from, mem(from, 0, strideBytes, 2));
  });
  // left is now 0 if one row remains, -1 if none does.
  a.cmp(left, 0);
  a.j("ne", done);
  for (let v = 0; v < numVectors; v++) {
    low(v);
    widen(v);
  }
  store();
  a.bind(done);
}

/**
 * Lanes contiguous, bf16, into the `tiles` layout: source[depth][lane]. 32 rows of 32 lanes at a
 * time; of each two rows the words of half of the lanes wait behind the tiles, where nothing has
 * been written yet.
 */
export function emitTilePack(a: X64, { width }: PanelFormat): void {
  const { source, panels, lanes, depth } = PACK_ARGUMENTS;
  const [from, left] = [r.r13, r.r14];
  const stepBytes = width * 64;
  a.countdown(lanes, width, () => {
    emitLowBits(a, r.rax, lanes);
    a.kmovd(k(1), r.rax);
    a.mov(from, source);
    a.mov(left, depth);
    a.countdown(left, 32, () => {
      for (let word = 0; word < 16; word++) emitInterleaveRows(a, { word, from, left, stepBytes });
      emitStoreLanes(a, 0);
      for (let word = 0; word < 16; word++) {
        a.v("vmovups", [zmm(word), mem(panels, stepBytes + word * 64)]);
      }
      emitStoreLanes(a, 4);
      a.add(panels, stepBytes);
    });
    a.add(source, width * 2);
  });
}

/**
 * Words of 32 lanes from the next two rows, as far as there are any: of lanes 0..3 of every eight
 * in zmm(word), of lanes 4..7 behind the tiles at `panels`.
 */
function emitInterleaveRows(
  a: X64,
  options: {
    readonly word: number;
    readonly from: Gp;
    readonly left: Gp;
    readonly stepBytes: number;
  },
): void {
  const { word, from, left, stepBytes } = options;
  const { strideBytes, panels } = PACK_ARGUMENTS;
  const [even, odd, high] = [zmm(16), zmm(17), zmm(18)];
  const ready = a.label();
  for (const row of [even, odd]) a.v("vpxord", [row, row, row]);
  a.cmp(left, 2 * word);
  a.j("le", ready);
  a.v("vmovdqu16", [even, mem(from)], zeroing(k(1)));
  a.cmp(left, 2 * word + 1);
  a.j("le", ready);
  a.v("vmovdqu16", [odd, mem(from, 0, strideBytes, 1)], zeroing(k(1)));
  a.lea(from, mem(from, 0, strideBytes, 2));
  a.bind(ready);
  a.v("vpunpcklwd", [zmm(word), even, odd]);
  a.v("vpunpckhwd", [high, even, odd]);
  a.v("vmovups", [mem(panels, stepBytes + word * 64), high]);
}

/** Transposes zmm0..15, which become lanes `first` and the three after it of every eight. */
function emitStoreLanes(a: X64, first: 0 | 4): void {
  emitTranspose16(a);
  for (let i = 0; i < 16; i++) {
    const lane = 8 * Math.floor(i / 4) + first + (i % 4);
    a.v("vmovups", [mem(PACK_ARGUMENTS.panels, lane * 64), zmm(i)]);
  }
}

/** Clear vector registers 0 .. count - 1. */
export function emitClear(a: X64, count: number): void {
  for (let i = 0; i < count; i++) a.v("vpxord", [zmm(i), zmm(i), zmm(i)]);
}
