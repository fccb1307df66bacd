/**
 * @file The AMX instructions, emitted as AVX-512 code that does the same to tiles in memory, bit
 * for bit, but for the payload of a NaN where two meet.
 *
 * With it the whole AMX kernels (packing, loops, addresses, ragged edges, the order of sums) run
 * and are tested on a processor without tiles. The state is 8 tiles of 1024 bytes, then the last
 * configuration (64 bytes), then the number of releases (8 bytes). Tiles have 16 rows, of as many
 * bytes as the configuration says.
 *
 * Sums are those that processors were found to make (docs/log.md): of 16 pairs the even and the odd
 * elements apart, each a chain of multiply-adds from zero, then both together, then that to the sum
 * so far; subnormal inputs and results are zeros of their sign.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import {
  type Gp,
  k,
  type Memory,
  mem,
  merging,
  r,
  type Tile,
  type Vector,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import type { NativeThread } from "../native-thread-test-support.ts";
import type { TileUnit } from "./x64-tile-core.ts";

const TILE_BYTES = 1024;
const ROW_BYTES = 64;
const NUM_ROWS = 16;
export const EMULATION_CONFIGURATION = 8192;
export const EMULATION_RELEASES = 8256;
export const EMULATION_BYTES = 8320;
/** Place of tile 0's bytes a row in a configuration; each takes 16 bits. */
const ROW_BYTES_AT = 16;

/** Emits `body` with registers that none of `used` is, and restores them. */
type WithScratch = (used: readonly (Gp | null)[], body: (p: Gp, q: Gp) => void) => void;

/** Tile instructions over the state at `address`. They clobber zmm registers, k6, k7 and flags. */
export function emulatedTiles(a: X64, address: number): TileUnit {
  const withScratch: WithScratch = (used, body) => {
    const [p = r.rax, q = r.rdx] = [r.rax, r.rdx, r.r8, r.r9].filter((gp) => !used.includes(gp));
    a.push(p);
    a.push(q);
    body(p, q);
    a.pop(q);
    a.pop(p);
  };
  /** Rows of memory at `m` and of `tile`, the words that the tile has in k7. */
  const eachRow = (tile: Tile, m: Memory, body: (row: Memory, inTile: Memory) => void): void =>
    withScratch([m.base, m.index], (row, state) => {
      a.mov(state, address + EMULATION_CONFIGURATION + ROW_BYTES_AT + 2 * tile.index);
      a.movzx16(state, mem(state));
      a.shr(state, 2);
      a.mov(row, -1);
      a.bzhi(row, row, state);
      a.kmovw(k(7), row);
      // Both scratch registers are on the stack.
      a.lea(row, mem(m.base, m.displacement + (m.base === r.rsp ? 16 : 0)));
      a.mov(state, address + tile.index * TILE_BYTES);
      for (let at = 0; at < TILE_BYTES; at += ROW_BYTES) {
        body(mem(row), mem(state, at));
        a.add(row, m.index ?? r.rax);
      }
    });
  const load = (tile: Tile, source: Memory): void =>
    eachRow(tile, source, (row, inTile) => {
      a.v("vmovups", [zmm(31), row], zeroing(k(7)));
      a.v("vmovups", [inTile, zmm(31)]);
    });
  return {
    ldtilecfg: (configuration) => {
      a.v("vmovups", [zmm(31), configuration]);
      withScratch([], (state) => {
        a.mov(state, address + EMULATION_CONFIGURATION);
        a.v("vmovups", [mem(state), zmm(31)]);
      });
    },
    tilerelease: () =>
      withScratch([], (state) => {
        a.mov(state, address + EMULATION_RELEASES);
        a.add(mem(state), 1);
      }),
    tilezero: (tile) =>
      withScratch([], (tiles) => {
        a.mov(tiles, address + tile.index * TILE_BYTES);
        a.v("vpxord", [zmm(31), zmm(31), zmm(31)]);
        for (let at = 0; at < TILE_BYTES; at += ROW_BYTES) {
          a.v("vmovups", [mem(tiles, at), zmm(31)]);
        }
      }),
    tileloadd: load,
    tileloaddt1: load,
    tilestored: (destination, tile) =>
      eachRow(tile, destination, (row, inTile) => {
        a.v("vmovups", [zmm(31), inTile]);
        a.v("vmovups", [row, zmm(31)], merging(k(7)));
      }),
    tdpbf16ps: (sum, left, right) => {
      const places = [sum, left, right].map((tile) => address + tile.index * TILE_BYTES);
      emitProducts(a, withScratch, places as [number, number, number]);
    },
  };
}

/** Rows of sums one after the other; `places` are those of the sums, of left and of right. */
function emitProducts(
  a: X64,
  withScratch: WithScratch,
  [sums, left, right]: readonly [number, number, number],
): void {
  const [pair, even, odd] = [zmm(16), zmm(17), zmm(18)];
  const [leftEven, leftOdd, rightEven, rightOdd] = [zmm(19), zmm(20), zmm(21), zmm(22)];
  const [exponents, sign, highHalf] = [zmm(23), zmm(24), zmm(25)];
  const flush = (...values: readonly Vector[]): void => {
    for (const value of values) {
      a.v("vptestmd", [k(6), value, exponents]);
      a.knotw(k(7), k(6));
      a.v("vpandd", [value, value, sign], merging(k(7)));
    }
  };
  const split = (evenOf: Vector, oddOf: Vector, words: Vector): void => {
    a.v("vpslld", [evenOf, words, 16]);
    a.v("vpandd", [oddOf, words, highHalf]);
    flush(evenOf, oddOf);
  };
  withScratch([], (row, end) => {
    for (const [constant, value] of [
      [exponents, 0x7f800000],
      [sign, 0x80000000],
      [highHalf, 0xffff0000],
    ] as const) {
      a.mov(row, value);
      a.v("vpbroadcastd r32", [constant, row]);
    }
    a.mov(row, right);
    for (let word = 0; word < NUM_ROWS; word++) {
      a.v("vmovups", [zmm(word), mem(row, word * ROW_BYTES)]);
    }
    a.mov(row, left);
    a.lea(end, mem(row, TILE_BYTES));
    const next = a.label();
    a.bind(next);
    for (const chain of [even, odd]) a.v("vpxord", [chain, chain, chain]);
    for (let word = 0; word < NUM_ROWS; word++) {
      a.v("vpbroadcastd", [pair, mem(row, 4 * word)]);
      split(leftEven, leftOdd, pair);
      split(rightEven, rightOdd, zmm(word));
      a.v("vfmadd231ps", [even, leftEven, rightEven]);
      a.v("vfmadd231ps", [odd, leftOdd, rightOdd]);
      flush(even, odd);
    }
    a.v("vaddps", [even, even, odd]);
    flush(even);
    a.v("vaddps", [even, even, mem(row, sums - left)]);
    flush(even);
    a.v("vmovups", [mem(row, sums - left), even]);
    a.add(row, ROW_BYTES);
    a.cmp(row, end);
    a.j("b", next);
  });
}

/** Tiles that a kernel is tested on, and why not here ("" if they run); null: the processor's. */
export interface TestedTiles {
  readonly name: string;
  readonly refusal: string;
  readonly unit: ((a: X64) => TileUnit) | null;
}

/** The processor's tiles and emulated ones, whose state is in the thread's memory. */
export function testedTiles({ context, reason }: NativeThread): readonly TestedTiles[] {
  const { memory, native } = context;
  const state = memory.baseAddress + memory.reserve(EMULATION_BYTES);
  const refusal = native?.features.amxBf16 ? "" : reason || "this processor has no AMX";
  return [
    { name: "tiles", refusal, unit: null },
    { name: "emulated tiles", refusal: reason, unit: (a) => emulatedTiles(a, state) },
  ];
}
