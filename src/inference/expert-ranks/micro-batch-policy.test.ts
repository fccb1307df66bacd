/** @file The policy finds the faster way, whatever the size and the link, and follows changes. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MicroBatchPolicy } from "./micro-batch-policy.ts";

/** So many passes of a size, which take such times; returns which went as two. */
function run(
  policy: MicroBatchPolicy,
  numPasses: number,
  { numTokens = 256, one, two }: { numTokens?: number; one: number; two: number },
): boolean[] {
  return Array.from({ length: numPasses }, (_, index) => {
    const isTwo = policy.takesTwo(numTokens);
    // A prompt gets longer, and its passes with it.
    const work = 1 + index / 100;
    const milliseconds = (isTwo ? two : one) * work;
    policy.note({ numTokens, isTwo, work, milliseconds });
    return isTwo;
  });
}

const count = (ways: readonly boolean[]): number => ways.filter((isTwo) => isTwo).length;

describe("one micro-batch or two", () => {
  it("tries both, then keeps the faster one and looks at the other now and then", () => {
    const slowLink = run(new MicroBatchPolicy(), 100, { one: 3, two: 2 });
    assert.deepEqual(slowLink.slice(0, 6), [false, true, false, true, false, true]);
    assert.ok(count(slowLink.slice(6)) >= 90);
    assert.ok(count(slowLink.slice(6)) < 94);
    const fastLink = run(new MicroBatchPolicy(), 100, { one: 2, two: 3 });
    assert.ok(count(fastLink.slice(6)) <= 4);
    assert.ok(count(fastLink.slice(6)) > 0);
  });

  it("follows a link that becomes slow", () => {
    const policy = new MicroBatchPolicy();
    run(policy, 20, { one: 2, two: 2.5 });
    assert.ok(count(run(policy, 100, { one: 4, two: 2.5 })) > 80);
  });

  it("is not led by a pass that was held up", () => {
    const policy = new MicroBatchPolicy();
    run(policy, 20, { one: 3, two: 2 });
    policy.note({ numTokens: 256, isTwo: true, work: 1, milliseconds: 1000 });
    assert.equal(policy.takesTwo(256), true);
  });

  it("keeps sizes apart, and steps of decoding whole", () => {
    const policy = new MicroBatchPolicy();
    run(policy, 10, { numTokens: 256, one: 3, two: 2 });
    run(policy, 10, { numTokens: 130, one: 2, two: 3 });
    assert.deepEqual(
      [256, 300, 130, 127, 1].map((size) => policy.takesTwo(size)),
      [...[true, true, false, false, false]],
    );
  });
});
