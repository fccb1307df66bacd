/**
 * @file Causal attention of one head of one sequence over AMX tiles, forward and backward, stripe
 * by stripe.
 *
 *     forward    rows of keys, columns of values              of every block
 *                scores = keys · queryᵀ, weights, out = valuesᵀ · weights ÷ total
 *     backward   rows of keys and values, columns of keys     of every block
 *                scores and weights again; gradients of weights = values · gᵀ, and of scores
 *                dQuery = keysᵀ · gradients;  dValues += weights · g;  dKeys += gradients · query
 *
 * Every sum goes over blocks of 32 keys, or stripes of 32 queries, in rising order, so a row's
 * bits do not depend on the rows behind it. Weights of keys that a query does not see are exact
 * zeros; 0 · NaN is NaN, so values that are not finite leak into other rows of their stripe: the
 * caller looks for them and calls again.
 */
import { EXP2 } from "../../codegen/vector/math.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Gp, mem, r, zmm } from "../../codegen/x64/operands.ts";
import { emitTileConfiguration, type TileUnit } from "../matmul/x64-tile-core.ts";
import { FRACTION_POLYNOMIAL } from "./program.ts";
import { type AskedRows, emitAsk, emitAskSetUp } from "./x64-ask.ts";
import {
  BLOCK,
  blockBytes,
  type CONSTANTS,
  constant,
  emitBlockAddress,
  emitEachBlock,
  inRound,
  inScratch,
  KEPT,
  LINE_BYTES,
  pairsBytes,
  TILE_BYTES,
  TILED_AT,
  type TiledCode,
  type TiledLayout,
} from "./x64-frame.ts";
import {
  emitPackColumns,
  emitPackLanes,
  emitPackPairs,
  emitPackRows,
  emitPairing,
  type RowSource,
} from "./x64-pack.ts";
import {
  emitAddToSums,
  emitMix,
  emitScores,
  emitWriteRows,
  emitWriteSums,
} from "./x64-products.ts";
import { emitHideKeys, emitScoreGradients, emitWeights } from "./x64-softmax.ts";

export type Direction = "forward" | "backward";

/** The code for a layout, with the tile instructions of `unit` (null: the processor's). */
export function emitTiledPass(
  at: TiledLayout,
  direction: Direction,
  unit: ((a: X64) => TileUnit) | null,
): Uint8Array {
  return emitKernel({
    body: (a) => {
      const code = { a, at, tiles: unit === null ? a : unit(a) };
      emitSetUp(code);
      emitAskSetUp(code, rowsAsked(at, direction));
      if (direction === "forward") {
        emitEachBlock(a, () => emitPackForward(code));
        emitEachBlock(a, () => emitForwardStripe(code));
      } else {
        emitEachBlock(a, () => emitPackBackward(code));
        loadSlot(a, KEPT.start, TILED_AT.firstRow);
        emitBeginRound(code, 0);
        emitEachBlock(a, () => {
          emitBackwardStripe(code);
          emitEndStripe(code);
        });
        const isDone = a.label();
        a.cmp(KEPT.rowsLeft, 0);
        a.j("e", isDone);
        emitWriteSums(code);
        a.bind(isDone);
      }
      code.tiles.tilerelease();
    },
  });
}

/** The scratch, its constants and the tiles' shape. */
function emitSetUp(code: TiledCode): void {
  const { a, at, tiles } = code;
  loadSlot(a, KEPT.scratch, TILED_AT.scratch);
  a.mov(KEPT.line, LINE_BYTES);
  emitTileConfiguration(a, tiles, inScratch(at.configuration));
  emitPairing(code);
  const store = (name: (typeof CONSTANTS)[number], bits: number): void => {
    a.mov(r.rax, bits);
    a.mov32(constant(code, name), r.rax);
  };
  const [c4, c3, c2, c1, c0] = FRACTION_POLYNOMIAL;
  for (const [name, value] of Object.entries({ shift: EXP2.shift, c4, c3, c2, c1, c0 })) {
    store(name as "shift", new Int32Array(Float32Array.of(value).buffer)[0]!);
  }
  store("half", 0x8000);
  store("upper", 0xffff0000 | 0);
  for (const name of ["scale", "scaleLog2", "least"] as const) {
    a.v("vcvtsd2ss", [zmm(0), zmm(0), mem(KEPT.slots, 8 * TILED_AT[name])]);
    a.v("vmovss m32", [constant(code, name), zmm(0)]);
  }
}

function querySource({ nope, rope }: TiledLayout): RowSource {
  return { base: TILED_AT.query, stride: TILED_AT.queryStride, columns: nope + rope };
}

function keySources({ nope, rope }: TiledLayout): readonly RowSource[] {
  return [
    { base: TILED_AT.key, stride: TILED_AT.keyStride, columns: nope },
    { base: TILED_AT.keyRope, stride: TILED_AT.keyRopeStride, columns: rope },
  ];
}

function valueSource({ value }: TiledLayout): RowSource {
  return { base: TILED_AT.value, stride: TILED_AT.keyStride, columns: value };
}

function emitPackForward(code: TiledCode): void {
  const { a, at } = code;
  const bytes = blockBytes(at);
  const [from, to] = [r.rsi, r.rdx];
  emitPackRows(code, keySources(at), (rows) =>
    emitBlockAddress(a, rows, TILED_AT.keys, bytes.keys),
  );
  emitPackRows(code, [valueSource(at)], (rows) => a.lea(rows, inScratch(at.rows)));
  a.lea(from, inScratch(at.rows));
  emitBlockAddress(a, to, TILED_AT.values, bytes.values);
  emitPackColumns(code, { from, to, numTiles: at.valueTiles });
}

function emitPackBackward(code: TiledCode): void {
  const { a, at } = code;
  const bytes = blockBytes(at);
  const [from, to] = [r.rsi, r.rdx];
  const into = (place: "keys" | "values" | "keyColumns") => (register: Gp) =>
    emitBlockAddress(a, register, TILED_AT[place], bytes[place]);
  emitPackRows(code, keySources(at), into("keys"));
  emitPackRows(code, [valueSource(at)], into("values"));
  into("keys")(from);
  into("keyColumns")(to);
  emitPackColumns(code, { from, to, numTiles: at.keyTiles });
}

/** What a pass reads, and writes in backward, of the next head. */
function rowsAsked({ nope, rope, value }: TiledLayout, direction: Direction): readonly AskedRows[] {
  const rows: readonly AskedRows[] = [
    { base: TILED_AT.askedQuery, stride: TILED_AT.queryStride, columns: nope + rope },
    { base: TILED_AT.askedKey, stride: TILED_AT.keyStride, columns: nope + value },
    { base: TILED_AT.askedOut, stride: TILED_AT.outStride, columns: value },
  ];
  if (direction === "forward") return rows;
  return [
    ...rows,
    { base: TILED_AT.askedDQuery, stride: TILED_AT.dQueryStride, columns: nope + rope },
    { base: TILED_AT.askedDKey, stride: TILED_AT.dKeyStride, columns: nope + value },
    { base: TILED_AT.askedDKeyRope, stride: TILED_AT.dKeyRopeStride, columns: rope },
  ];
}

/** Scores of a stripe and its weights. */
function emitStripeWeights(code: TiledCode, direction: Direction): void {
  const { a, at } = code;
  const numTiles = at.keyTiles;
  emitPackRows(code, [querySource(at)], (rows) => a.lea(rows, inScratch(at.rows)));
  emitPackLanes(code, { rows: at.rows, to: at.queryLanes, numTiles });
  if (direction === "backward") emitPackPairs(code, { rows: at.rows, to: 0, numTiles });
  emitScores(code, { rows: TILED_AT.keys, lanes: at.queryLanes, numTiles });
  emitHideKeys(code);
  const form = direction === "forward" ? "words" : "rows";
  emitWeights(code, form, () => emitAsk(code, rowsAsked(at, direction)));
}

function emitForwardStripe(code: TiledCode): void {
  const { at } = code;
  emitStripeWeights(code, "forward");
  emitMix(code, { columns: TILED_AT.values, words: TILED_AT.weights, count: at.value });
  const to = { base: TILED_AT.out, stride: TILED_AT.outStride, count: at.value };
  emitWriteRows(code, to, at.inverse);
}

function emitBackwardStripe(code: TiledCode): void {
  const { a, at } = code;
  const numTiles = at.valueTiles;
  emitStripeWeights(code, "backward");
  const gradient = { base: TILED_AT.out, stride: TILED_AT.outStride, columns: at.value };
  emitPackRows(code, [gradient], (rows) => a.lea(rows, inScratch(at.rows)), at.inverse);
  emitPackLanes(code, { rows: at.rows, to: at.gradientLanes, numTiles });
  emitPackPairs(code, { rows: at.rows, to: at.keyTiles * 2 * TILE_BYTES, numTiles });
  emitScores(code, { rows: TILED_AT.values, lanes: at.gradientLanes, numTiles });
  emitScoreGradients(code);
  const count = at.nope + at.rope;
  emitMix(code, { columns: TILED_AT.keyColumns, words: TILED_AT.gradientWords, count });
  emitWriteRows(code, { base: TILED_AT.dQuery, stride: TILED_AT.dQueryStride, count }, null);
}

/** The next stripe, so many rows on, is the first of a round. */
function emitBeginRound(code: TiledCode, rows: number): void {
  const { a } = code;
  a.lea(r.rax, mem(KEPT.start, rows));
  a.mov(inRound(code, "first"), r.rax);
  a.mov(inRound(code, "stripes"), 0);
  for (const name of ["weights", "scoreGradients", "pairs"] as const) {
    loadSlot(a, r.rax, TILED_AT[name]);
    a.mov(inRound(code, name), r.rax);
  }
}

/** The end of a stripe, and of the round if it has its stripes or there are no more. */
function emitEndStripe(code: TiledCode): void {
  const { a, at } = code;
  const [isWhole, isOver, goesOn] = [a.label(), a.label(), a.label()];
  loadSlot(a, r.rax, TILED_AT.stripeBytes);
  a.add(inRound(code, "weights"), r.rax);
  a.add(inRound(code, "scoreGradients"), r.rax);
  a.add(inRound(code, "pairs"), pairsBytes(at));
  a.add(inRound(code, "stripes"), 1);
  a.cmp(KEPT.rowsLeft, BLOCK);
  a.j("l", isOver);
  a.j("e", isWhole);
  loadSlot(a, r.rax, TILED_AT.roundStripes);
  a.cmp(r.rax, inRound(code, "stripes"));
  a.j("g", goesOn);
  a.bind(isOver);
  emitAddToSums(code, "sums");
  emitBeginRound(code, BLOCK);
  a.jmp(goesOn);
  a.bind(isWhole);
  emitAddToSums(code, "outputs");
  a.bind(goesOn);
}
