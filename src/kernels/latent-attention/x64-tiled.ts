/**
 * @file Latent attention over AMX tiles as an implementation of the kernel, for latents in bf16.
 *
 * Columns of latents that do not fill tiles go to another implementation, whatever their queries:
 * all rows of a model are computed by one.
 */
import { assert, defined } from "../../base/errors.ts";
import { roundUp } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { type KernelImplementation, slot } from "../kernel.ts";
import { type TileUnit, tilesRefusal } from "../matmul/x64-tile-core.ts";
import { LATENT_ATTENTION_AT as AT } from "./contract.ts";
import { type LatentTile, latentTile } from "./tile.ts";
import { DEPTH, LANES, TILED_AT, TILED_SLOTS, type TiledLayout, tiledLayout } from "./x64-frame.ts";
import { emitTiledAttention } from "./x64-tiles.ts";

/** `others` takes columns that do not fill tiles. */
export function latentAttentionOverTiles(others: KernelImplementation): KernelImplementation {
  return {
    target: "x64",
    refusal: (variant, context) =>
      tilesRefusal(variant, context) ?? others.refusal(variant, context),
    create: (variant, context) => {
      const tiled = tiledAttentionBody(context, null);
      let other: KernelBody | null = null;
      return (slots, firstTask, endTask) => {
        const isWhole = slot(slots, AT.latent) % DEPTH === 0 && slot(slots, AT.key) > 0;
        if (!isWhole) other ??= others.create(variant, context);
        (isWhole ? tiled : other!)(slots, firstTask, endTask);
      };
    },
  };
}

/** The body for whole tiles, with the tile instructions of `unit` (null: the processor's). */
export function tiledAttentionBody(
  context: ThreadContext,
  unit: ((a: X64) => TileUnit) | null,
): KernelBody {
  const attentions = new Map<string, TiledAttention>();
  return (slots, firstTask, endTask) => {
    const [latent, key] = [slot(slots, AT.latent), slot(slots, AT.key)];
    const name = `${latent}:${key}`;
    let attention = attentions.get(name);
    if (attention === undefined) {
      attention = new TiledAttention(context, tiledLayout(latent, key), unit);
      attentions.set(name, attention);
    }
    for (let task = firstTask; task < endTask; task++) {
      attention.run(slots, latentTile(slots, context.memory, task));
    }
  };
}

/** One thread's code for one model's columns. */
class TiledAttention {
  readonly #context: ThreadContext;
  readonly #layout: TiledLayout;
  readonly #call: () => void;
  readonly #arguments: Float64Array;
  /** Keys that each row sees; rows that are missing see what the last one does. */
  readonly #limits: Int32Array;

  constructor(context: ThreadContext, layout: TiledLayout, unit: ((a: X64) => TileUnit) | null) {
    const { memory, scratch, argumentBlock } = context;
    const native = defined(context.native, "native runtime");
    assert(
      layout.end <= scratch.byteLength,
      `latentAttention: latents of ${layout.latent} columns do not fit the scratch`,
    );
    const code = native.load(emitTiledAttention(layout, unit));
    const slotsAddress = memory.baseAddress + argumentBlock.byteOffset;
    this.#context = context;
    this.#layout = layout;
    this.#call = () => code.call(slotsAddress, 0, 0, memory.baseAddress);
    // Shared memory grows in place: these views never go stale.
    const { buffer } = memory.wasm;
    this.#arguments = new Float64Array(buffer, argumentBlock.byteOffset, TILED_SLOTS);
    this.#limits = new Int32Array(
      buffer,
      scratch.byteOffset + layout.limits,
      (layout.scores - layout.limits) / 4,
    );
  }

  run(slots: Float64Array, tile: LatentTile): void {
    const { numRows } = tile;
    this.#attend(slots, tile, 0, numRows);
    const last = tile.keysOf(numRows - 1);
    if (tile.keysOf(0) === last || this.#isFinite(slots, tile.firstRow + numRows - 1)) return;
    // The last row sees all latents of the tile, one of which may have leaked into rows before it.
    for (let row = 0; row < numRows; ) {
      let end = row + 1;
      while (end < numRows && tile.keysOf(end) === tile.keysOf(row)) end++;
      this.#attend(slots, tile, row, end);
      row = end;
    }
  }

  /** Rows [first, end) of a tile. */
  #attend(slots: Float64Array, tile: LatentTile, first: number, end: number): void {
    const { memory, scratch } = this.#context;
    const base = memory.baseAddress;
    const into = this.#arguments;
    const row = tile.firstRow + first;
    const place = (offset: number, stride: number, bytes: number, rows: number): number =>
      base + slot(slots, offset) + rows * slot(slots, stride) * bytes;
    into[TILED_AT.query] = place(AT.queryOffset, AT.queryRowStride, 4, row);
    into[TILED_AT.queryStrideBytes] = slot(slots, AT.queryRowStride) * 4;
    into[TILED_AT.latents] = base + slot(slots, AT.latentsOffset);
    into[TILED_AT.latentsStrideBytes] = slot(slots, AT.latentsRowStride) * 2;
    into[TILED_AT.keys] = base + slot(slots, AT.keysOffset);
    into[TILED_AT.keysStrideBytes] = slot(slots, AT.keysRowStride) * 4;
    into[TILED_AT.table] = base + tile.tableOffset;
    into[TILED_AT.numRows] = end - first;
    into[TILED_AT.numKeys] = tile.keysOf(end - 1);
    into[TILED_AT.out] = place(AT.outOffset, AT.outRowStride, 4, row);
    into[TILED_AT.outStrideBytes] = slot(slots, AT.outRowStride) * 4;
    into[TILED_AT.scale] = slot(slots, AT.scale) * Math.LOG2E;
    into[TILED_AT.scratch] = base + scratch.byteOffset;
    const lanes = roundUp(end - first, LANES);
    for (let index = 0; index < lanes; index++) {
      this.#limits[index] = tile.keysOf(Math.min(first + index, end - 1));
    }
    this.#call();
  }

  #isFinite(slots: Float64Array, row: number): boolean {
    const values = this.#context.memory.f32;
    const first = slot(slots, AT.outOffset) / 4 + row * slot(slots, AT.outRowStride);
    for (let at = first; at < first + this.#layout.latent; at++) {
      if (!Number.isFinite(values[at]!)) return false;
    }
    return true;
  }
}
