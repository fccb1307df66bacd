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
    const latents = elementsAt(memory, dtype, slot(slots, AT.latentsOffset));
    const keys = elementsAt(memory, floatType, slot(slots, AT.keysOffset));
    const out = elementsAt(memory, floatType, slot(slots, AT.outOffset));
    for (let task = firstTask; task < endTask; task++) {
      const tile = latentTile(slots, memory, task);
      for (let index = 0; index < tile.numRows; index++) {
        attendRow(slots, tile, index, { query, latents, keys, out });
      }
    }
  };
}

function attendRow(
  slots: Float64Array,
  tile: LatentTile,
  index: number,
  at: Readonly<Record<"query" | "latents" | "keys" | "out", Elements>>,
): void {
  const row = tile.firstRow + index;
  const [latent, key] = [slot(slots, AT.latent), slot(slots, AT.key)];
  const queryStart = row * slot(slots, AT.queryRowStride);
  const places = Array.from({ length: tile.keysOf(index) }, (_, position) => {
    const block = floorDiv(position, LATENT_BLOCK_TOKENS);
    return tile.blockOf(block) * LATENT_BLOCK_TOKENS + (position % LATENT_BLOCK_TOKENS);
  });
  const latentOf = (place: number, column: number): number =>
    at.latents.get(place * slot(slots, AT.latentsRowStride) + column);
  const keyOf = (place: number, column: number): number =>
    at.keys.get(place * slot(slots, AT.keysRowStride) + column);
  const scores = places.map((place) => {
    let sum = 0;
    for (let c = 0; c < latent; c++) sum += at.query.get(queryStart + c) * latentOf(place, c);
    for (let c = 0; c < key; c++) sum += at.query.get(queryStart + latent + c) * keyOf(place, c);
    return sum * slot(slots, AT.scale);
  });
  const top = scores.reduce((most, score) => Math.max(most, score), Number.NEGATIVE_INFINITY);
  const exponentials = scores.map((score) => Math.exp(score - top));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  for (let column = 0; column < latent; column++) {
    let sum = 0;
    for (const [index, place] of places.entries()) {
      sum += exponentials[index]! * latentOf(place, column);
    }
    at.out.set(row * slot(slots, AT.outRowStride) + column, sum / total);
  }
}
