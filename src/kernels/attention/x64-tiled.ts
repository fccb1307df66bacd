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
import { type TileUnit, tilesRefusal } from "../matmul/x64-tile-core.ts";
import { ATTENTION_AT as AT } from "./contract.ts";
import { type HeadTask, headTask, type Place } from "./heads.ts";
import { BLOCK, LANES, TILED_AT, TILED_SLOTS, type TiledLayout, tiledLayout } from "./x64-frame.ts";
import { type Direction, emitTiledPass } from "./x64-passes.ts";
import { planScratch, type ScratchPlan } from "./x64-plan.ts";

const FLOAT_BYTES = 4;

/** A quarter of a second-level cache; more would be gone again before its turn. */
const ASKED_BYTES_MAX = 2 ** 19;

/** `others` takes what tiles do not. */
export function attentionOverTiles(
  others: KernelImplementation,
  direction: Direction,
): KernelImplementation {
  return {
    target: "x64",
    refusal: (variant, context) =>
      tilesRefusal(variant, context) ?? others.refusal(variant, context),
    create: (variant, context) => {
      const passes = new TiledPasses(context, direction, null);
      let other: KernelBody | null = null;
      return (slots, firstTask, endTask) => {
        if (passes.run(slots, firstTask, endTask)) return;
        other ??= others.create(variant, context);
        other(slots, firstTask, endTask);
      };
    },
  };
}

/** The body for what fits, with the tile instructions of `unit` (null: the processor's). */
export function tiledAttentionBody(
  context: ThreadContext,
  direction: Direction,
  unit: ((a: X64) => TileUnit) | null,
): KernelBody {
  const passes = new TiledPasses(context, direction, unit);
  return (slots, firstTask, endTask) => {
    assert(passes.run(slots, firstTask, endTask), "attention: this does not fit tiles");
  };
}

/** One thread's passes in one direction, by the widths of heads. */
class TiledPasses {
  readonly #context: ThreadContext;
  readonly #direction: Direction;
  readonly #unit: ((a: X64) => TileUnit) | null;
  readonly #passes = new Map<string, TiledPass>();

  constructor(context: ThreadContext, direction: Direction, unit: ((a: X64) => TileUnit) | null) {
    this.#context = context;
    this.#direction = direction;
    this.#unit = unit;
  }

  /** Whether the tasks were for tiles, and are done. */
  run(slots: Float64Array, firstTask: number, endTask: number): boolean {
    const widths = [slot(slots, AT.nope), slot(slots, AT.rope), slot(slots, AT.value)] as const;
    if (slot(slots, AT.scale) <= 0) return false;
    if (widths.some((width) => width < 1 || width % LANES !== 0)) return false;
    const pass = this.#passOf(widths);
    if (!pass.fits(slot(slots, AT.seqLength))) return false;
    const numTasks = slot(slots, AT.numSequences) * slot(slots, AT.numHeads);
    let next: HeadTask | null = headTask(slots, firstTask, FLOAT_BYTES);
    for (let number = firstTask; number < endTask; number++) {
      const task: HeadTask = next!;
      // Most often the one that this thread takes next, also where the run ends.
      next = number + 1 < numTasks ? headTask(slots, number + 1, FLOAT_BYTES) : null;
      pass.run(task, next);
    }
    return true;
  }

  #passOf(widths: readonly [nope: number, rope: number, value: number]): TiledPass {
    const name = widths.join(":");
    let pass = this.#passes.get(name);
    if (pass === undefined) {
      const code = emitTiledPass(tiledLayout(...widths), this.#direction, this.#unit);
      pass = new TiledPass(this.#context, tiledLayout(...widths), this.#direction, code);
      this.#passes.set(name, pass);
    }
    return pass;
  }
}

/** One thread's code for one model's heads. */
class TiledPass {
  readonly #context: ThreadContext;
  readonly #layout: TiledLayout;
  readonly #direction: Direction;
  readonly #call: () => void;
  readonly #arguments: Float64Array;
  /** Of the last length that was asked about; null if that does not fit. */
  #plan: ScratchPlan | null = null;

  constructor(context: ThreadContext, layout: TiledLayout, direction: Direction, code: Uint8Array) {
    const { memory, argumentBlock } = context;
    const native = defined(context.native, "native runtime").load(code);
    const slotsAddress = memory.baseAddress + argumentBlock.byteOffset;
    this.#context = context;
    this.#layout = layout;
    this.#direction = direction;
    this.#call = () => native.call(slotsAddress, 0, 0, memory.baseAddress);
    // Shared memory grows in place: the view never goes stale.
    this.#arguments = new Float64Array(memory.wasm.buffer, argumentBlock.byteOffset, TILED_SLOTS);
  }

  /** Whether the scratch has room for a sequence. */
  fits(seqLength: number): boolean {
    if (this.#plan?.seqLength === seqLength) return true;
    const { byteLength } = this.#context.scratch;
    this.#plan = planScratch(this.#layout, this.#direction, seqLength, byteLength);
    return this.#plan !== null;
  }

  /** A head of a sequence that fits. */
  run(task: HeadTask, next: HeadTask | null): void {
    const into = this.#arguments;
    const { seqLength } = task;
    this.#place(task);
    this.#placeParts();
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
    const set = (at: number, { offset, rowStride }: Place): void => {
      into[at] = base + offset;
      into[at + 1] = rowStride * FLOAT_BYTES;
    };
    into[TILED_AT.scale] = task.scale;
    into[TILED_AT.scaleLog2] = task.scale * Math.LOG2E;
    into[TILED_AT.least] = EXP2.least / (task.scale * Math.LOG2E);
    set(TILED_AT.query, task.qNope);
    set(TILED_AT.key, task.kNope);
    into[TILED_AT.value] = base + task.values.offset;
    set(TILED_AT.keyRope, task.keyRope);
    set(TILED_AT.out, this.#direction === "forward" ? task.out : task.dOut);
    set(TILED_AT.dQuery, task.dQNope);
    set(TILED_AT.dKey, task.dKNope);
    set(TILED_AT.dKeyRope, task.dKeyRope);
  }

  #placeParts(): void {
    const into = this.#arguments;
    const { memory, scratch } = this.#context;
    const { roundStripes, stripeBytes, parts } = defined(this.#plan, "the plan of the scratch");
    const base = memory.baseAddress + scratch.byteOffset;
    into[TILED_AT.scratch] = base;
    into[TILED_AT.roundStripes] = roundStripes;
    into[TILED_AT.stripeBytes] = stripeBytes;
    for (const [at, offset] of parts) into[at] = base + offset;
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
