/** @file What is told of a token's probability, against the definition. */
import assert from "node:assert/strict";
import { it } from "node:test";
import { describeToken } from "./log-probabilities.ts";

it("tells the model's own log-probability of a token and the likeliest ones in order", () => {
  const probabilities = [0.1, 0.4, 0.2, 0.3];
  const logits = Float32Array.from(probabilities, (p) => 5 + Math.log(p));
  const told = describeToken(logits, 2, 3);
  assert.equal(told.token, 2);
  assert.ok(Math.abs(told.logProbability - Math.log(0.2)) < 1e-6, `${told.logProbability}`);
  assert.deepEqual(
    told.top.map(({ token }) => token),
    [1, 3, 2],
  );
  for (const { token, logProbability } of told.top) {
    assert.ok(Math.abs(logProbability - Math.log(probabilities[token]!)) < 1e-6, `${token}`);
  }
  assert.deepEqual(describeToken(logits, 0, 0).top, []);
  const extreme = Float32Array.of(-3e38, 3e38, Number.NEGATIVE_INFINITY, 2.9e38);
  assert.equal(describeToken(extreme, 1, 0).logProbability, 0);
});
