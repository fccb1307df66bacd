/** @file Where the parts of a sequence stand in the scratch of attention over AMX tiles. */
import { floorDiv } from "../../base/integers.ts";
import {
  BLOCK,
  blockBytes,
  type KeyPlace,
  pairsBytes,
  TILED_AT,
  type TiledLayout,
} from "./x64-frame.ts";

/** Stripes of a round at most: what they leave for its end is to stay in the second-level cache. */
const ROUND_STRIPES_MAX = 8;

/** What one length of a sequence needs; the same for all heads. */
export interface ScratchPlan {
  readonly seqLength: number;
  readonly roundStripes: number;
  /** From a stripe's weights to the next one's. */
  readonly stripeBytes: number;
  /** Slots of the parts, and their places in the scratch. */
  readonly parts: readonly (readonly [slot: number, offset: number])[];
}

/** With as many stripes a round as there is room for; null if the sequence is too long. */
export function planScratch(
  layout: TiledLayout,
  direction: "forward" | "backward",
  seqLength: number,
  scratchBytes: number,
): ScratchPlan | null {
  const bytes = blockBytes(layout);
  const numBlocks = floorDiv(seqLength + BLOCK - 1, BLOCK);
  const perKey: readonly KeyPlace[] =
    direction === "forward"
      ? ["keys", "values", "scores"]
      : ["keys", "values", "keyColumns", "scores", "gradientWords", "sums"];
  const most = direction === "forward" ? 1 : Math.min(ROUND_STRIPES_MAX, numBlocks);
  for (let roundStripes = most; roundStripes > 0; roundStripes--) {
    const parts: [number, number][] = [];
    let end = layout.end;
    const take = (part: KeyPlace | "pairs", partBytes: number): void => {
      parts.push([TILED_AT[part], end]);
      end += partBytes;
    };
    for (const part of perKey) take(part, bytes[part] * numBlocks);
    take("weights", bytes.weights * numBlocks * roundStripes);
    if (direction === "backward") {
      take("scoreGradients", bytes.scoreGradients * numBlocks * roundStripes);
      take("pairs", pairsBytes(layout) * roundStripes);
    }
    const stripeBytes = bytes.weights * numBlocks;
    if (end <= scratchBytes) return { seqLength, roundStripes, stripeBytes, parts };
  }
  return null;
}
