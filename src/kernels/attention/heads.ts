/** @file Where the parts of one head of one sequence stand; shared by all attention bodies. */
import { floorDiv } from "../../base/integers.ts";
import { slot } from "../kernel.ts";
import { ATTENTION_AT as AT } from "./contract.ts";

/**
 * A matrix inside device memory: byte offset of its first element, and its row stride in elements.
 */
export interface Place {
  readonly offset: number;
  readonly rowStride: number;
}

/**
 * Everything one task reads and writes. Parts that the launch does not have stand at offset 0 and
 * are not used.
 */
export interface HeadTask {
  readonly seqLength: number;
  readonly nope: number;
  readonly rope: number;
  readonly value: number;
  readonly scale: number;
  readonly qNope: Place;
  readonly qRope: Place;
  readonly kNope: Place;
  readonly values: Place;
  readonly keyRope: Place;
  readonly out: Place;
  readonly dOut: Place;
  readonly dQNope: Place;
  readonly dQRope: Place;
  readonly dKNope: Place;
  readonly dValues: Place;
  readonly dKeyRope: Place;
}

/** Take task number `task` of a launch apart; `bytes` is the size of an element. */
export function headTask(slots: Float64Array, task: number, bytes: number): HeadTask {
  const seqLength = slot(slots, AT.seqLength);
  const numHeads = slot(slots, AT.numHeads);
  const nope = slot(slots, AT.nope);
  const rope = slot(slots, AT.rope);
  const value = slot(slots, AT.value);
  const sequence = floorDiv(task, numHeads);
  const head = task - sequence * numHeads;
  const place = (offsetSlot: number, column: number): Place => {
    const rowStride = slot(slots, offsetSlot + 1);
    const element = sequence * seqLength * rowStride + column;
    return { offset: slot(slots, offsetSlot) + element * bytes, rowStride };
  };
  const queryColumn = head * (nope + rope);
  const keyColumn = head * (nope + value);
  return {
    seqLength,
    nope,
    rope,
    value,
    scale: slot(slots, AT.scale),
    qNope: place(AT.qOffset, queryColumn),
    qRope: place(AT.qOffset, queryColumn + nope),
    kNope: place(AT.kvOffset, keyColumn),
    values: place(AT.kvOffset, keyColumn + nope),
    keyRope: place(AT.keyRopeOffset, 0),
    out: place(AT.outOffset, head * value),
    dOut: place(AT.dOutOffset, head * value),
    dQNope: place(AT.dQOffset, queryColumn),
    dQRope: place(AT.dQOffset, queryColumn + nope),
    dKNope: place(AT.dKvOffset, keyColumn),
    dValues: place(AT.dKvOffset, keyColumn + nope),
    dKeyRope: place(AT.dKeyRopeOffset, head * rope),
  };
}
