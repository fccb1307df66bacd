/**
 * @file Sets of code points, and how one of them is written: as UTF-8, or inside a JSON string.
 *
 * Surrogates are in no set: UTF-8 cannot hold them. Inside a JSON string what has to be escaped is
 * escaped as JSON.stringify does it, and nothing else.
 */
import type { NetworkBuilder } from "./network.ts";

/** From, to, both inside. */
export type CodePointRange = readonly [low: number, high: number];

export const CODE_POINT_MAX = 0x10ffff;
export const ANY_CODE_POINT: readonly CodePointRange[] = [[0, CODE_POINT_MAX]];

/** Ordered, disjoint, without surrogates. */
export function normalizeRanges(ranges: readonly CodePointRange[]): CodePointRange[] {
  const merged: [number, number][] = [];
  for (const [low, high] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const last = merged.at(-1);
    if (last !== undefined && low <= last[1] + 1) last[1] = Math.max(last[1], high);
    else merged.push([low, high]);
  }
  return intersect(merged, [
    [0, 0xd7ff],
    [0xe000, CODE_POINT_MAX],
  ]);
}

/** Everything but the ranges. */
export function complement(ranges: readonly CodePointRange[]): CodePointRange[] {
  const gaps: CodePointRange[] = [];
  let start = 0;
  for (const [low, high] of [...ranges].sort((a, b) => a[0] - b[0])) {
    if (low > start) gaps.push([start, low - 1]);
    start = Math.max(start, high + 1);
  }
  if (start <= CODE_POINT_MAX) gaps.push([start, CODE_POINT_MAX]);
  return normalizeRanges(gaps);
}

function intersect(
  left: readonly CodePointRange[],
  right: readonly CodePointRange[],
): CodePointRange[] {
  return left.flatMap(([low, high]) =>
    right
      .map(([from, to]): CodePointRange => [Math.max(low, from), Math.min(high, to)])
      .filter(([from, to]) => from <= to),
  );
}

/** How a code point of a set is read. */
export type WriteSet = (from: number, ranges: readonly CodePointRange[]) => number;

/** As itself. */
export function plainSet(builder: NetworkBuilder): WriteSet {
  return (from, ranges) => {
    const end = builder.newState();
    for (const range of normalizeRanges(ranges)) addUtf8(builder, from, range, end);
    return end;
  };
}

/** Quotation mark, backslash and the control characters. */
const ESCAPED: readonly CodePointRange[] = [
  [0, 0x1f],
  [0x22, 0x22],
  [0x5c, 0x5c],
];
/** What a JSON string holds as itself. */
export const UNESCAPED: readonly CodePointRange[] = complement(ESCAPED);

/** As a JSON string holds it. */
export function jsonSet(builder: NetworkBuilder): WriteSet {
  return (from, ranges) => {
    const end = builder.newState();
    const all = normalizeRanges(ranges);
    for (const range of intersect(all, UNESCAPED)) addUtf8(builder, from, range, end);
    for (const [low, high] of intersect(all, ESCAPED)) {
      for (let point = low; point <= high; point++) {
        const spelled = JSON.stringify(String.fromCodePoint(point)).slice(1, -1);
        builder.skip(builder.text(from, spelled), end);
      }
    }
    return end;
  };
}

/** The last code points of one, two, three and four bytes. */
const LAST_BY_LENGTH = [0x7f, 0x7ff, 0xffff, CODE_POINT_MAX];

/** Edges for the UTF-8 of a range without surrogates. */
function addUtf8(builder: NetworkBuilder, from: number, range: CodePointRange, end: number): void {
  let [low] = range;
  for (const [index, last] of LAST_BY_LENGTH.entries()) {
    if (low > last || low > range[1]) continue;
    addSameLength(builder, from, [low, Math.min(last, range[1])], { length: index + 1, end });
    low = last + 1;
  }
}

/** Divide a range until its bytes vary independently of each other, then add their edges. */
function addSameLength(
  builder: NetworkBuilder,
  from: number,
  [low, high]: CodePointRange,
  to: { readonly length: number; readonly end: number },
): void {
  for (let bits = 6; bits < 6 * to.length; bits += 6) {
    const unit = 2 ** bits;
    const lowPart = Math.floor(low / unit);
    const highPart = Math.floor(high / unit);
    if (lowPart === highPart) continue;
    if (low % unit !== 0) {
      addSameLength(builder, from, [low, (lowPart + 1) * unit - 1], to);
      addSameLength(builder, from, [(lowPart + 1) * unit, high], to);
      return;
    }
    if (high % unit !== unit - 1) {
      addSameLength(builder, from, [low, highPart * unit - 1], to);
      addSameLength(builder, from, [highPart * unit, high], to);
      return;
    }
  }
  const lows = new TextEncoder().encode(String.fromCodePoint(low));
  const highs = new TextEncoder().encode(String.fromCodePoint(high));
  let state = from;
  for (const [i, byte] of lows.entries()) {
    const target = i === lows.length - 1 ? to.end : builder.newState();
    builder.edge(state, byte, highs[i]!, target);
    state = target;
  }
}
