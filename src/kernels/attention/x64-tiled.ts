/**
 * @file Causal attention over AMX tiles as an implementation of the bf16 variants.
 *
 * Widths that do not fill tiles, scales that are not positive and sequences that are too long for
 * the scratch go to another implementation.
 */

import { assert, defined } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { EXP2 } from "../../codegen/vector/math.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { type KernelImplementation, slot } from "../kernel.ts";
import type { TileUnit } from "../matmul/x64-tile-core.ts";
import { ATTENTION_AT as AT } from "./contract.ts";
import { type HeadTask, headTask, type Place } from "./heads.ts";
import {
  BLOCK,
  blockBytes,
  type KeyPlace,
  LANES,
  pairsBytes,
  TILED_AT,
  TILED_SLOTS,
  type TiledLayout,
  tiledLayout,
} from "./x64-frame.ts";
import { type Direction, emitTiledPass } from "./x64-passes.ts";

const FLOAT_BYTES = 4;

/** A quarter of a second-level cache; more would be gone again before its turn. */
const ASKED_BYTES_MAX = 2 ** 19;

/** Stripes of a round at most: what they leave for its end is to stay in the second-level cache. */
const ROUND_STRIPES_MAX = 8;

type Part = KeyPlace | "pairs";

/** Calls `take` for every part of the scratch that depends on the number of keys or of stripes. */
function eachPart(
  layout: TiledLayout,
  direction: Direction,
  { numBlocks, roundStripes }: { readonly numBlocks: number; readonly roundStripes: number },
  take: (part: Part, bytes: number) => void,
): void {
  const bytes = blockBytes(layout);
  for (const part of ["keys", "values", "scores"] as const) take(part, bytes[part] * numBlocks);
  take("weights", bytes.weights * numBlocks * roundStripes);
  if (direction === "forward") return;
  take("scoreGradients", bytes.scoreGradients * numBlocks * roundStripes);
  take("pairs", pairsBytes(layout) * roundStripes);
  for (const part of ["keyColumns", "gradientWords", "sums"] as const) {
    take(part, bytes[part] * numBlocks);
  }
}

/** The most stripes of a round that the scratch has room for; 0 if the sequence is too long. */
function roundStripesOf(
  layout: TiledLayout,
  direction: Direction,
  seqLength: number,
  scratchBytes: number,
): number {
  const numBlocks = floorDiv(seqLength + BLOCK - 1, BLOCK);
  let roundStripes = direction === "forward" ? 1 : Math.min(ROUND_STRIPES_MAX, numBlocks);
  for (; roundStripes > 0; roundStripes--) {
    let bytes = layout.end;
    eachPart(layout, direction, { numBlocks, roundStripes }, (_, partBytes) => {
      bytes += partBytes;
    });
    if (bytes <= scratchBytes) break;
  }
  return roundStripes;
}

/** `others` takes what tiles do not. */
export function attentionOverTiles(
  others: KernelImplementation,
  direction: Direction,
): KernelImplementation {
  return {
    target: "x64",
    refusal: (variant, context) => {
      if (context.native === null) return "native code is off or impossible here";
      if (!context.native.features.amxBf16) return "the processor has no AMX";
      if (variant !== "bf16") return `tiles hold bf16, not ${variant}`;
      return others.refusal(variant, context);
    },
    create: (variant, context) => {
      const tiled = tiledAttentionBody(context, direction, null);
      let other: KernelBody | null = null;
      return (slots, firstTask, endTask) => {
        const fits = fitsTiles(slots, context, direction);
        if (!fits) other ??= others.create(variant, context);
        (fits ? tiled : other!)(slots, firstTask, endTask);
      };
    },
  };
}

function fitsTiles(slots: Float64Array, { scratch }: ThreadContext, direction: Direction): boolean {
  const widths = [slot(slots, AT.nope), slot(slots, AT.rope), slot(slots, AT.value)] as const;
  if (slot(slots, AT.scale) <= 0 || widths.some((width) => width < 1 || width % LANES !== 0)) {
    return false;
  }
  const layout = tiledLayout(...widths);
  return roundStripesOf(layout, direction, slot(slots, AT.seqLength), scratch.byteLength) > 0;
}

/** The body for what fits, with the tile instructions of `unit` (null: the processor's). */
export function tiledAttentionBody(
  context: ThreadContext,
  direction: Direction,
  unit: ((a: X64) => TileUnit) | null,
): KernelBody {
  const passes = new Map<string, TiledPass>();
  return (slots, firstTask, endTask) => {
    const widths = [slot(slots, AT.nope), slot(slots, AT.rope), slot(slots, AT.value)] as const;
    const name = widths.join(":");
    let pass = passes.get(name);
    if (pass === undefined) {
      pass = new TiledPass(context, tiledLayout(...widths), direction, unit);
      passes.set(name, pass);
    }
    const numTasks = slot(slots, AT.numSequences) * slot(slots, AT.numHeads);
    let next: HeadTask | null = headTask(slots, firstTask, FLOAT_BYTES);
    for (let number = firstTask; number < endTask; number++) {
      const task: HeadTask = next!;
      // Most often the one that this thread takes next, also where the run ends.
      next = number + 1 < numTasks ? headTask(slots, number + 1, FLOAT_BYTES) : null;
      pass.run(task, next);
    }
  };
}

/** One thread's code for one model's heads. */
class TiledPass {
  readonly #context: ThreadContext;
  readonly #layout: TiledLayout;
  readonly #direction: Direction;
  readonly #call: () => void;
  readonly #arguments: Float64Array;

  constructor(
    context: ThreadContext,
    layout: TiledLayout,
    direction: Direction,
    unit: ((a: X64) => TileUnit) | null,
  ) {
    const { memory, argumentBlock } = context;
    const code = defined(context.native, "native runtime").load(
      emitTiledPass(layout, direction, unit),
    );
    const slotsAddress = memory.baseAddress + argumentBlock.byteOffset;
    this.#context = context;
    this.#layout = layout;
    this.#direction = direction;
    this.#call = () => code.call(slotsAddress, 0, 0, memory.baseAddress);
    // Shared memory grows in place: the view never goes stale.
    this.#arguments = new Float64Array(memory.wasm.buffer, argumentBlock.byteOffset, TILED_SLOTS);
  }

  run(task: HeadTask, next: HeadTask | null): void {
    const into = this.#arguments;
    const { seqLength } = task;
    this.#place(task);
    this.#placeParts(seqLength);
    this.#placeNext(next);
    into[TILED_AT.seqLength] = seqLength;
    into[TILED_AT.firstRow] = 0;
    this.#call();
    if (this.#direction === "forward" && !this.#isFinite(task, seqLength - 1)) {
      this.#separateRows(task);
    }
  }

  /**
   * Values that are not finite, one of which the last row sees, have leaked into rows of their
   * stripe that do not see them. Those rows are computed again, each as the last of a sequence,
   * from the last to the first: a call spoils what it writes before its own row, and packs its own
   * block for itself.
   */
  #separateRows(task: HeadTask): void {
    const into = this.#arguments;
    const { seqLength } = task;
    for (let start = floorDiv(seqLength - 1, BLOCK) * BLOCK; start >= 0; start -= BLOCK) {
      const end = Math.min(start + BLOCK, seqLength);
      if (this.#isFinite(task, end - 1)) continue;
      into[TILED_AT.firstRow] = start;
      into[TILED_AT.askedRows] = 0;
      for (let row = end - 1; row >= start; row--) {
        into[TILED_AT.seqLength] = row + 1;
        this.#call();
      }
    }
  }

  #place(task: HeadTask): void {
    const into = this.#arguments;
    const base = this.#context.memory.baseAddress;
    const set = (name: keyof typeof TILED_AT, { offset, rowStride }: Place): void => {
      into[TILED_AT[name]] = base + offset;
      into[TILED_AT[name] + 1] = rowStride * FLOAT_BYTES;
    };
    into[TILED_AT.scale] = task.scale;
    into[TILED_AT.scaleLog2] = task.scale * Math.LOG2E;
    into[TILED_AT.least] = EXP2.least / (task.scale * Math.LOG2E);
    set("query", task.qNope);
    set("key", task.kNope);
    into[TILED_AT.value] = base + task.values.offset;
    set("keyRope", task.keyRope);
    set("out", this.#direction === "forward" ? task.out : task.dOut);
    set("dQuery", task.dQNope);
    set("dKey", task.dKNope);
    set("dKeyRope", task.dKeyRope);
  }

  /** What the scratch has of every key. */
  #placeParts(seqLength: number): void {
    const into = this.#arguments;
    const { memory, scratch } = this.#context;
    const [layout, direction] = [this.#layout, this.#direction];
    const numBlocks = floorDiv(seqLength + BLOCK - 1, BLOCK);
    const roundStripes = roundStripesOf(layout, direction, seqLength, scratch.byteLength);
    assert(roundStripes > 0, `attention: a sequence of ${seqLength} does not fit the scratch`);
    let next = memory.baseAddress + scratch.byteOffset;
    into[TILED_AT.scratch] = next;
    next += layout.end;
    into[TILED_AT.roundStripes] = roundStripes;
    into[TILED_AT.stripeBytes] = blockBytes(layout).weights * numBlocks;
    eachPart(layout, direction, { numBlocks, roundStripes }, (part, bytes) => {
      into[TILED_AT[part]] = next;
      next += bytes;
    });
  }

  /** The head whose rows are asked for meanwhile, if they have room beside this one's. */
  #placeNext(next: HeadTask | null): void {
    const into = this.#arguments;
    const base = this.#context.memory.baseAddress;
    const { nope, rope, value } = this.#layout;
    const isForward = this.#direction === "forward";
    const columns = isForward ? 2 * (nope + value) + rope : 4 * nope + 3 * (rope + value);
    const fits = next !== null && next.seqLength * columns * FLOAT_BYTES <= ASKED_BYTES_MAX;
    into[TILED_AT.askedRows] = fits ? next.seqLength : 0;
    if (!fits) return;
    into[TILED_AT.askedQuery] = base + next.qNope.offset;
    into[TILED_AT.askedKey] = base + next.kNope.offset;
    into[TILED_AT.askedOut] = base + (isForward ? next.out : next.dOut).offset;
    into[TILED_AT.askedDQuery] = base + next.dQNope.offset;
    into[TILED_AT.askedDKey] = base + next.dKNope.offset;
    into[TILED_AT.askedDKeyRope] = base + next.dKeyRope.offset;
  }

  #isFinite({ out, value }: HeadTask, row: number): boolean {
    const values = this.#context.memory.f32;
    const first = out.offset / FLOAT_BYTES + row * out.rowStride;
    for (let at = first; at < first + value; at++) {
      if (!Number.isFinite(values[at]!)) return false;
    }
    return true;
  }
}
