/** @file The dispatch plan as a counting sort. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { slot } from "../kernel.ts";
import { PLAN_DISPATCH_AT as AT } from "./contract.ts";

export function createReferencePlanDispatch(_variant: string, context: ThreadContext): KernelBody {
  return (slots) => {
    const words = context.memory.i32;
    const at = (name: keyof typeof AT): number => slot(slots, AT[name]) / 4;
    const chosen = slot(slots, AT.chosen);
    const experts = slot(slots, AT.experts);
    const numRows = slot(slots, AT.tokens) * chosen;
    const [choice, offsets] = [at("choice"), at("offsets")];
    const [tokenOfRow, rowOfChoice] = [at("tokenOfRow"), at("rowOfChoice")];
    words.fill(0, offsets, offsets + experts + 1);
    for (let index = 0; index < numRows; index++) words[offsets + words[choice + index]! + 1]!++;
    for (let expert = 0; expert < experts; expert++) {
      words[offsets + expert + 1]! += words[offsets + expert]!;
    }
    // An expert's offset moves past its rows, to where the next one's began; then all go back.
    for (let index = 0; index < numRows; index++) {
      const row = words[offsets + words[choice + index]!]!++;
      words[tokenOfRow + row] = Math.floor(index / chosen);
      words[rowOfChoice + index] = row;
    }
    words.copyWithin(offsets + 1, offsets, offsets + experts);
    words[offsets] = 0;
  };
}
