/** @file Attention over a latent cache in blocks, plainly: one query row at a time, f64 sums. */
import { floorDiv } from "../../base/integers.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { DType } from "../../tensor/dtype.ts";
import { slot } from "../kernel.ts";
import { type Elements, elementsAt } from "../views.ts";
import { LATENT_ATTENTION_AT as AT, LATENT_BLOCK_TOKENS } from "./contract.ts";
import { type LatentTile, latentTile } from "./tile.ts";

export function createReferenceLatentAttention(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const { memory } = context;
  const dtype = variant as DType;
  const floatType = dtype === "bf16" ? "f32" : dtype;
  return (slots, firstTask, endTask) => {
    const query = elementsAt(memory, floatType, slot(slots, AT.queryOffset));
    const cached = elementsAt(memory, dtype, slot(slots, AT.rowsOffset));
    const out = elementsAt(memory, floatType, slot(slots, AT.outOffset));
    for (let task = firstTask; task < endTask; task++) {
      const tile = latentTile(slots, memory, task);
      for (let index = 0; index < tile.numRows; index++) {
        attendRow(slots, tile, index, { query, cached, out });
      }
    }
  };
}

function attendRow(
  slots: Float64Array,
  tile: LatentTile,
  index: number,
  { query, cached, out }: Readonly<Record<"query" | "cached" | "out", Elements>>,
): void {
  const row = tile.firstRow + index;
  const [width, latent] = [slot(slots, AT.width), slot(slots, AT.latent)];
  const queryStart = row * slot(slots, AT.queryRowStride);
  const starts = Array.from({ length: tile.keysOf(index) }, (_, position) => {
    const block = floorDiv(position, LATENT_BLOCK_TOKENS);
    const rowInPool = tile.blockOf(block) * LATENT_BLOCK_TOKENS + (position % LATENT_BLOCK_TOKENS);
    return rowInPool * slot(slots, AT.rowsRowStride);
  });
  const scores = starts.map((start) => {
    let sum = 0;
    for (let column = 0; column < width; column++) {
      sum += query.get(queryStart + column) * cached.get(start + column);
    }
    return sum * slot(slots, AT.scale);
  });
  const top = scores.reduce((most, score) => Math.max(most, score), Number.NEGATIVE_INFINITY);
  const exponentials = scores.map((score) => Math.exp(score - top));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  for (let column = 0; column < latent; column++) {
    let sum = 0;
    for (const [key, start] of starts.entries()) {
      sum += exponentials[key]! * cached.get(start + column);
    }
    out.set(row * slot(slots, AT.outRowStride) + column, sum / total);
  }
}
