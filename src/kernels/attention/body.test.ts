/**
 * @file The composed attention against the plain one, both over reference products, in scratch of
 * different sizes.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../base/random.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import { mismatch, toleranceFor } from "../../numerics/tolerance.ts";
import { createReferenceMultiplier } from "../matmul/reference.ts";
import {
  createReferenceSoftmaxBackward,
  createReferenceSoftmaxCausal,
} from "../softmax/reference.ts";
import { attentionBackwardBody, attentionBody } from "./body.ts";
import { ATTENTION_AT as AT, ATTENTION_SLOTS } from "./contract.ts";
import { createReferenceAttention, createReferenceAttentionBackward } from "./reference.ts";

const SEED = 4711;
const [NUM_SEQUENCES, SEQ_LENGTH, NUM_HEADS, NOPE, ROPE, VALUE] = [2, 70, 3, 6, 4, 5];
const TOKENS = NUM_SEQUENCES * SEQ_LENGTH;

const memory = CpuMemory.create(null);
const span = (byteLength: number): Span => ({ byteOffset: memory.reserve(byteLength), byteLength });
const context: ThreadContext = {
  memory,
  threadIndex: 0,
  scratch: span(65536),
  argumentBlock: span(512),
  native: null,
};

/** A launch over random operands; outputs stand where `outputs` says. */
function launch(outputSlots: readonly [offset: keyof typeof AT, columns: number][]): {
  slots: Float64Array;
  outputs: () => Float32Array[];
} {
  const random = new Random(SEED);
  const slots = new Float64Array(ATTENTION_SLOTS.length);
  const header = [NUM_SEQUENCES, SEQ_LENGTH, NUM_HEADS, NOPE, ROPE, VALUE, 0.3];
  slots.set(header);
  const place = (offsetSlot: number, columns: number): Float32Array => {
    const { byteOffset } = span(TOKENS * columns * 4);
    slots.set([byteOffset, columns], offsetSlot);
    return new Float32Array(memory.u8.buffer, byteOffset, TOKENS * columns);
  };
  const inputs = [
    place(AT.qOffset, NUM_HEADS * (NOPE + ROPE)),
    place(AT.kvOffset, NUM_HEADS * (NOPE + VALUE)),
    place(AT.keyRopeOffset, ROPE),
    place(AT.dOutOffset, NUM_HEADS * VALUE),
  ];
  for (const input of inputs) {
    for (let index = 0; index < input.length; index++) input[index] = random.normal();
  }
  const outputs = outputSlots.map(([name, columns]) => place(AT[name], columns).fill(Number.NaN));
  return { slots, outputs: () => outputs.map((output) => output.slice()) };
}

const parts = {
  products: {
    nn: createReferenceMultiplier("nn", "f32", context),
    nt: createReferenceMultiplier("nt", "f32", context),
    tn: createReferenceMultiplier("tn", "f32", context),
  },
  softmax: createReferenceSoftmaxCausal("f32", context),
  softmaxBackward: createReferenceSoftmaxBackward("f32", context),
};

function assertSameOutputs(
  actual: KernelBody,
  expected: KernelBody,
  outputSlots: readonly [keyof typeof AT, number][],
): void {
  const { slots, outputs } = launch(outputSlots);
  const numTasks = NUM_SEQUENCES * NUM_HEADS;
  expected(slots, 0, numTasks);
  const wanted = outputs();
  actual(slots, 0, numTasks);
  outputs().forEach((got, index) => {
    const allowed = toleranceFor("attention", "f32", SEQ_LENGTH);
    assert.equal(mismatch(got, wanted[index]!, allowed), undefined);
  });
}

/** One block holds 64 queries; the smaller scratch holds 9 of them, so that blocks are ragged. */
for (const bytes of [1 << 20, 256 + 9 * 2 * 80 * 4]) {
  test(`attention in ${bytes} bytes of scratch equals plain attention`, () => {
    assertSameOutputs(
      attentionBody(parts, context, span(bytes)),
      createReferenceAttention("f32", context),
      [["outOffset", NUM_HEADS * VALUE]],
    );
  });

  test(`its gradients in ${bytes} bytes of scratch equal the plain ones`, () => {
    assertSameOutputs(
      attentionBackwardBody(parts, context, span(bytes)),
      createReferenceAttentionBackward("f32", context),
      [
        ["dQOffset", NUM_HEADS * (NOPE + ROPE)],
        ["dKvOffset", NUM_HEADS * (NOPE + VALUE)],
        ["dKeyRopeOffset", NUM_HEADS * ROPE],
      ],
    );
  });
}

test("a sequence that does not fit the scratch is refused", () => {
  const { slots } = launch([]);
  const body = attentionBody(parts, context, span(512));
  assert.throws(() => body(slots, 0, 1), /does not fit the scratch/);
});
