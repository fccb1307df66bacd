/**
 * @file Native functions of quantisation for ordinary numbers, sixty-four at a time; the other
 * functions (x64-tiles.ts) take everything.
 *
 *     quantise     tiles along the rows: the scales of some rows, then their codes, from the
 *                  nearest cache; tiles of one column: sixty-four side by side, scales and codes
 *     dequantise   tiles of single rows, to f32
 *
 * Ordinary is what has neither NaN nor infinity, and scales whose reciprocals can be trusted. Where
 * something is not, the function says so in its slot `refused` and what it has written is to be
 * written again. Nothing outside the operands is touched.
 */
import type { Label, X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { k, mem, merging, r, type Vector, xmm, ymm, zmm } from "../../codegen/x64/operands.ts";
import { emitEither } from "../matmul/x64-vector-core.ts";
import { FORMATS } from "./reference.ts";
import { add, emitLocals, type Locals, move, NUM_LOCALS } from "./x64-chunk-locals.ts";
import {
  CHUNK,
  type ChunkDType,
  type ChunkFormat,
  type Divisors,
  emitChunkConstants,
  emitReadChunk,
  emitTailMask,
  emitWriteCodes,
  emitWriteFloats,
  FREE,
  HARD_BITS,
  HARD_DISTANCE,
  MAGNITUDE,
  VALUES,
} from "./x64-chunks.ts";
import { emitSplat, floatBits, storedBytes } from "./x64-codes.ts";
import { LARGEST_POWER, LEAST_POWER, TILES_AT, type TileDirection } from "./x64-tiles.ts";

export interface ChunkFunction {
  readonly source: ChunkDType;
  readonly target: ChunkDType;
  readonly direction: TileDirection;
}

const AT = {
  x: r.r8,
  out: r.r9,
  scales: r.r10,
  /** Bytes from what is encoded to what is read next. */
  ahead: r.r11,
  width: r.r12,
  rowX: r.r13,
  rowOut: r.r14,
  rowsLeft: r.r15,
  left: r.rbx,
  atX: r.rbp,
  atOut: r.rsi,
  constants: r.rcx,
} as const;

/** Moving pointers of a band, and the slots of their strides. */
const POINTERS = [
  ["X", "xRowBytes"],
  ["Out", "outRowBytes"],
  ["XScales", "xScaleRowBytes"],
] as const;

/** Largest magnitudes, then scales; their reciprocals. */
const scales: readonly Vector[] = [zmm(12), zmm(13), zmm(14), zmm(15)];
const reciprocals: readonly Vector[] = [zmm(16), zmm(17), zmm(18), zmm(19)];
const [rowScale, free] = FREE as [Vector, Vector];
const [isOdd, isHard] = [k(6), k(7)];

function isScaled(dtype: ChunkDType): boolean {
  return dtype === "e4m3" || dtype === "e5m2";
}

/** Whether rows have scales of their own: where codes are only read, their tile has one. */
function hasRowScales({ source, target }: ChunkFunction): boolean {
  return isScaled(source) && isScaled(target);
}

/** Blocks of bands: `emitTiles` is called for each pass over the tiles of a block. */
function emitBlocks(
  a: X64,
  of: ChunkFunction,
  local: Locals,
  passes: readonly (() => void)[],
): void {
  for (const [name, slot] of [
    ["blockX", "x"],
    ["blockXScales", "xScales"],
    ["blockOut", "out"],
    ["blockScales", "scales"],
  ] as const) {
    loadSlot(a, r.rax, TILES_AT[slot]);
    a.mov(local(name), r.rax);
  }
  move(a, local("bandsLeft"), local("bands"));
  const [nextBlock, done] = [a.label(), a.label()];
  a.bind(nextBlock);
  a.mov(r.rax, local("bandsPerBlock"));
  a.mov(r.rdx, local("bandsLeft"));
  a.cmp(r.rdx, 0);
  a.j("le", done);
  a.cmp(r.rax, r.rdx);
  a.cmov("g", r.rax, r.rdx);
  a.mov(local("blockBands"), r.rax);
  a.sub(r.rdx, r.rax);
  a.mov(local("bandsLeft"), r.rdx);
  for (const emitTile of passes) emitBands(a, of, local, emitTile);
  for (const name of ["X", "XScales", "Out", "Scales"] as const) {
    move(a, local(`block${name}`), local(`band${name}`));
  }
  a.jmp(nextBlock);
  a.bind(done);
}

/** The tiles of the bands of a block, one after the other. */
function emitBands(a: X64, of: ChunkFunction, local: Locals, emitTile: () => void): void {
  const { source, target, direction } = of;
  for (const name of ["X", "XScales", "Out", "Scales"] as const) {
    move(a, local(`band${name}`), local(`block${name}`));
  }
  move(a, local("toGo"), local("blockBands"));
  const [nextBand, nextTile] = [a.label(), a.label()];
  a.bind(nextBand);
  a.mov(AT.x, local("bandX"));
  a.mov(AT.out, local("bandOut"));
  a.mov(AT.scales, local("bandScales"));
  a.mov(r.rax, local("columns"));
  a.mov(local("columnsLeft"), r.rax);
  if (hasRowScales(of)) {
    move(a, local("tileXScales"), local("bandXScales"));
    a.mov(r.rax, local("xTileColumns"));
    a.mov(local("xTileLeft"), r.rax);
  }
  a.bind(nextTile);
  if (direction === "across") a.mov(AT.width, CHUNK);
  else a.mov(AT.width, local("tileColumns"));
  a.cmp(AT.width, local("columnsLeft"));
  a.cmov("g", AT.width, local("columnsLeft"));
  emitTile();
  for (const [register, dtype] of [
    [AT.x, source],
    [AT.out, target],
  ] as const) {
    a.imul(r.rax, AT.width, storedBytes(dtype, 1));
    a.add(register, r.rax);
  }
  if (direction === "across") a.lea(AT.scales, mem(AT.scales, 0, AT.width, 4));
  else a.add(AT.scales, 4);
  if (hasRowScales(of)) emitNextScales(a, local);
  a.sub(local("columnsLeft"), AT.width);
  a.j("g", nextTile);
  for (const [name, stride] of POINTERS) {
    a.mov(r.rax, local("bandRows"));
    a.imul(r.rax, local(stride));
    a.add(local(`band${name}`), r.rax);
  }
  add(a, local("bandScales"), local("scaleRowBytes"));
  a.sub(local("toGo"), 1);
  a.j("g", nextBand);
}

/** The scales of the source's next tile, if one begins behind these columns. */
function emitNextScales(a: X64, local: Locals): void {
  const within = a.label();
  a.sub(local("xTileLeft"), AT.width);
  a.j("g", within);
  a.add(local("tileXScales"), 4);
  add(a, local("xTileLeft"), local("xTileColumns"));
  a.bind(within);
}

/** The chunks of a tile, row by row; `emit` finds their values read. */
function emitEachChunk(
  a: X64,
  of: ChunkFunction,
  local: Locals,
  emit: (isTail: boolean) => void,
): void {
  const { source, target } = of;
  const emitChunk = (isTail: boolean): void => {
    emitReadChunk(a, { source, at: AT.atX, isTail, constants: AT.constants });
    if (isScaled(source)) for (const value of VALUES) a.v("vmulps", [value, value, rowScale]);
    emit(isTail);
  };
  a.mov(AT.rowX, AT.x);
  a.mov(AT.rowOut, AT.out);
  if (hasRowScales(of)) move(a, local("rowScales"), local("tileXScales"));
  a.mov(AT.rowsLeft, local("bandRows"));
  a.countdown(AT.rowsLeft, 1, () => {
    if (hasRowScales(of)) {
      a.mov(r.rax, local("rowScales"));
      a.v("vbroadcastss", [rowScale, mem(r.rax)]);
      add(a, local("rowScales"), local("xScaleRowBytes"));
    }
    a.mov(AT.atX, AT.rowX);
    a.mov(AT.atOut, AT.rowOut);
    a.lea(AT.left, mem(AT.width, 1 - CHUNK));
    a.countdown(AT.left, CHUNK, () => {
      emitChunk(false);
      a.add(AT.atX, storedBytes(source, CHUNK));
      a.add(AT.atOut, storedBytes(target, CHUNK));
    });
    const done = a.label();
    a.add(AT.left, CHUNK - 1);
    a.j("le", done);
    emitTailMask(a, AT.left);
    emitChunk(true);
    a.bind(done);
    add(a, AT.rowX, local("xRowBytes"));
    add(a, AT.rowOut, local("outRowBytes"));
  });
}

/** The largest magnitudes of a tile's columns, as bits: NaN is larger than all numbers. */
function emitLargest(a: X64, of: ChunkFunction, local: Locals): void {
  for (const each of scales) a.v("vpxord", [each, each, each]);
  emitEachChunk(a, of, local, () => {
    for (const [index, value] of VALUES.entries()) {
      a.v("vpandd", [value, value, MAGNITUDE]);
      a.v("vpmaxud", [scales[index]!, scales[index]!, value]);
    }
  });
}

/** scale = max(amax, amaxMin) ÷ the largest of the format, or the power of two not below it. */
function emitScaleOf(a: X64, target: ChunkFormat, local: Locals): void {
  const [factor, mask] = [VALUES[0]!, VALUES[1]!];
  a.mov(r.rax, local("amaxMinBits"));
  a.v("vpbroadcastd r32", [factor, r.rax]);
  for (const each of scales) a.v("vpmaxud", [each, each, factor]);
  emitSplat(a, factor, floatBits(FORMATS[target].largest));
  for (const each of scales) a.v("vdivps", [each, each, factor]);
  emitEither(a, mem(r.rdi, 8 * TILES_AT.powerOfTwo), (isSet) => {
    if (!isSet) return;
    emitSplat(a, factor, 0x7fffff);
    emitSplat(a, mask, 0x7f800000);
    for (const each of scales) {
      a.v("vpaddd", [each, each, factor]);
      a.v("vpandd", [each, each, mask]);
    }
  });
}

/** What scales along the rows want in registers: there is one reciprocal then. */
const ALONG = { amaxMin: zmm(9), most: zmm(17), belowPower: zmm(18), exponent: zmm(19) } as const;

/** The scale of a tile along the rows: few instructions, for a tile is eight vectors. */
function emitScaleAlong(a: X64): void {
  const [tile, other] = [scales[0]!.index, VALUES[0]!.index];
  const pairs: readonly (readonly [number, number])[] = [
    [0, 1],
    [2, 3],
    [0, 2],
  ];
  for (const [to, from] of pairs) a.v("vpmaxud", [scales[to]!, scales[to]!, scales[from]!]);
  a.v("vextractf32x8", [ymm(other), zmm(tile), 1]);
  a.v("vpmaxud", [ymm(tile), ymm(tile), ymm(other)]);
  a.v("vextractf32x4", [xmm(other), ymm(tile), 1]);
  const [low, beside] = [xmm(tile), xmm(other)];
  a.v("vpmaxud", [low, low, beside]);
  for (const within of [0x4e, 0xb1]) {
    a.v("vpermilps", [beside, low, within]);
    a.v("vpmaxud", [low, low, beside]);
  }
  a.v("vpmaxud", [low, low, xmm(ALONG.amaxMin.index)]);
  a.v("vdivss", [low, low, xmm(ALONG.most.index)]);
  emitEither(a, mem(r.rdi, 8 * TILES_AT.powerOfTwo), (isSet) => {
    if (!isSet) return;
    a.v("vpaddd", [low, low, xmm(ALONG.belowPower.index)]);
    a.v("vpandd", [low, low, xmm(ALONG.exponent.index)]);
  });
  a.v("vmovss m32", [mem(AT.scales), low]);
}

function emitAlongConstants(a: X64, target: ChunkFormat, local: Locals): void {
  a.mov(r.rax, local("amaxMinBits"));
  a.v("vpbroadcastd r32", [ALONG.amaxMin, r.rax]);
  emitSplat(a, ALONG.most, floatBits(FORMATS[target].largest));
  emitSplat(a, ALONG.belowPower, 0x7fffff);
  emitSplat(a, ALONG.exponent, 0x7f800000);
}

const LEAST_SCALE = floatBits(2 ** LEAST_POWER);
const SCALE_RANGE = floatBits(2 ** LARGEST_POWER) - LEAST_SCALE;
const HARD_MASK = 2 ** HARD_BITS - 1;

/** A tile's scale and its reciprocal in every lane; refused if they are not ordinary. */
function emitDivisorAlong(a: X64, isExact: boolean, refuse: Label): void {
  const bits = r.rdx;
  a.mov32(bits, mem(AT.scales));
  a.lea(r.rax, mem(bits, -LEAST_SCALE));
  a.cmp(r.rax, SCALE_RANGE);
  a.j("a", refuse);
  if (!isExact) {
    const easy = a.label();
    a.lea(r.rax, mem(bits, HARD_DISTANCE));
    a.and(r.rax, HARD_MASK);
    a.cmp(r.rax, 2 * HARD_DISTANCE);
    a.j("a", easy);
    a.cmp(r.rax, HARD_DISTANCE);
    a.j("ne", refuse);
    a.bind(easy);
  }
  const low = xmm(reciprocals[0]!.index);
  a.mov(r.rax, floatBits(1));
  a.v("vmovd", [low, r.rax]);
  a.v("vdivss", [low, low, mem(AT.scales)]);
  a.v("vbroadcastss", [reciprocals[0]!, low]);
  a.v("vbroadcastss", [scales[0]!, mem(AT.scales)]);
}

/** Stores the scales of the columns of a tile, and finds their reciprocals. */
function emitDivisorsAcross(a: X64, isExact: boolean, refuse: Label): void {
  const [one, least, range, mask, distance] = [...VALUES, free] as Vector[];
  emitSplat(a, least!, LEAST_SCALE);
  emitSplat(a, range!, SCALE_RANGE);
  for (const [index, each] of scales.entries()) {
    const beyond = reciprocals[index]!;
    a.v("vpsubd", [beyond, each, least!]);
    a.v("vpcmpud", [isOdd, beyond, range!, 6]);
    emitRefuseAny(a, refuse);
  }
  emitSplat(a, mask!, HARD_MASK);
  emitSplat(a, distance!, HARD_DISTANCE);
  emitSplat(a, range!, 2 * HARD_DISTANCE);
  for (const [index, each] of scales.entries()) {
    if (isExact) break;
    const beside = reciprocals[index]!;
    a.v("vpaddd", [beside, each, distance!]);
    a.v("vpandd", [beside, beside, mask!]);
    a.v("vpcmpud", [isHard, beside, range!, 2]);
    a.v("vpcmpud", [isOdd, beside, distance!, 4], merging(isHard));
    emitRefuseAny(a, refuse);
  }
  emitSplat(a, one!, floatBits(1));
  for (const [index, each] of scales.entries()) a.v("vdivps", [reciprocals[index]!, one!, each]);
}

function emitRefuseAny(a: X64, refuse: Label): void {
  a.kortestw(isOdd, isOdd);
  a.j("nz", refuse);
}

/** Scales of single columns to memory. */
function emitStoreScales(a: X64): void {
  const [tail, stored] = [a.label(), a.label()];
  a.cmp(AT.width, CHUNK);
  a.j("ne", tail);
  emitWriteFloats(a, { at: AT.scales, isTail: false }, scales);
  a.jmp(stored);
  a.bind(tail);
  emitTailMask(a, AT.width);
  emitWriteFloats(a, { at: AT.scales, isTail: true }, scales);
  a.bind(stored);
}

/**
 * ahead = the way to what is read next, while codes are made: of single rows the next block; else
 * the next tile's columns, and behind the last of them the first ones of the next band.
 */
function emitAhead(a: X64, { source, direction }: ChunkFunction, local: Locals): void {
  const known = a.label();
  if (direction === "along") {
    a.mov(AT.ahead, local("xRowBytes"));
    a.imul(AT.ahead, local("bandsPerBlock"));
    a.cmp(local("bandRows"), 1);
    a.j("e", known);
  }
  a.mov(AT.ahead, local("xRowBytes"));
  a.imul(AT.ahead, local("bandRows"));
  a.mov(r.rax, local("columns"));
  a.sub(r.rax, AT.width);
  a.imul(r.rax, r.rax, storedBytes(source, 1));
  a.sub(AT.ahead, r.rax);
  a.imul(r.rax, AT.width, storedBytes(source, 1));
  a.cmp(AT.width, local("columnsLeft"));
  a.cmov("l", AT.ahead, r.rax);
  a.bind(known);
}

/** Asks for the chunk that lies `ahead` of the present one. */
function emitFetchAhead(a: X64, source: ChunkDType): void {
  for (let line = 0; line < storedBytes(source, CHUNK); line += 64) {
    a.prefetch(mem(AT.atX, line, AT.ahead));
  }
}

/** Divisors of all vectors of a chunk: one each, or one for all. */
function divisorsOf({ direction }: ChunkFunction, areExact: boolean): Divisors {
  const all = (vectors: readonly Vector[]): readonly Vector[] =>
    direction === "across" ? vectors : vectors.map(() => vectors[0]!);
  return { scales: all(scales), reciprocals: all(reciprocals), areExact };
}

/** Code that quantises ordinary numbers; a source of codes has tiles of one row, across. */
export function emitQuantiseChunks(
  of: ChunkFunction & { readonly target: ChunkFormat },
): Uint8Array {
  return emitKernel({
    numLocals: NUM_LOCALS,
    body: (a, localAt) => {
      const local = emitLocals(a, localAt);
      const { source, target, direction } = of;
      const [refuse, done] = [a.label(), a.label()];
      loadSlot(a, AT.constants, TILES_AT.chunkConstants);
      emitChunkConstants(a, { source, target, constants: AT.constants });
      const emitCodes = (): void => {
        emitAhead(a, of, local);
        emitEither(a, mem(r.rdi, 8 * TILES_AT.powerOfTwo), (isExact) => {
          if (direction === "along") emitDivisorAlong(a, isExact, refuse);
          else emitDivisorsAcross(a, isExact, refuse);
          emitEachChunk(a, of, local, (isTail) => {
            if (!isTail) emitFetchAhead(a, source);
            emitWriteCodes(
              a,
              { at: AT.atOut, isTail },
              { source, target },
              divisorsOf(of, isExact),
            );
          });
        });
      };
      if (direction === "along") {
        emitAlongConstants(a, target, local);
        const emitScale = (): void => {
          emitLargest(a, of, local);
          emitScaleAlong(a);
        };
        emitBlocks(a, of, local, [emitScale, emitCodes]);
      } else {
        emitBlocks(a, of, local, [
          () => {
            emitLargest(a, of, local);
            emitScaleOf(a, target, local);
            emitStoreScales(a);
            emitCodes();
          },
        ]);
      }
      a.jmp(done);
      a.bind(refuse);
      a.mov(mem(r.rdi, 8 * TILES_AT.refused), 1);
      a.bind(done);
    },
  });
}

/** Code that writes the values of codes, in tiles of single rows, as f32. */
export function emitDequantiseChunks(source: ChunkFormat): Uint8Array {
  const of = { source, target: "f32", direction: "along" } as const;
  return emitKernel({
    numLocals: NUM_LOCALS,
    body: (a, localAt) => {
      const local = emitLocals(a, localAt);
      loadSlot(a, AT.constants, TILES_AT.chunkConstants);
      emitChunkConstants(a, { source, target: "f32", constants: AT.constants });
      emitBlocks(a, of, local, [
        () => {
          a.v("vbroadcastss", [rowScale, mem(AT.scales)]);
          emitEachChunk(a, of, local, (isTail) =>
            emitWriteFloats(a, { at: AT.atOut, isTail }, VALUES),
          );
        },
      ]);
    },
  });
}
