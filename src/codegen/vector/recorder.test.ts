/** @file What recording a body gives: the program as data, its slots, and when its values die. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { analyseLiveness, uniformWeights } from "./liveness.ts";
import { operandSlot, type RowProgram, scalarSlot, slotNames } from "./program.ts";
import { rowProgram } from "./recorder.ts";

/** out = x · scale / Σ x², with a weight a row. */
function example(): RowProgram {
  return rowProgram({
    name: "example",
    operands: {
      x: { kind: "row", dtype: "f32" },
      weight: { kind: "perRow", dtype: "f32" },
      out: { kind: "row", dtype: "f32" },
    },
    scalars: ["scale"],
    body(v, { x, weight, out }, { scale }) {
      const { squares } = v.columns(() => {
        const value = v.load(x);
        return { squares: v.sumOfProducts(value, value) };
      });
      const factor = v.div(v.mul(scale, v.loadPerRow(weight)), squares);
      v.columns(() => v.store(out, v.add(v.mul(v.load(x), factor), v.float(1))));
    },
  });
}

test("a recorded program is plain data that survives a copy", () => {
  const program = example();
  assert.deepEqual(structuredClone(program), program);
  assert.deepEqual(program.instructions, [
    { op: "scalar", index: 0 },
    { op: "load", operand: 0 },
    { op: "reduced" },
    {
      op: "columns",
      body: [1],
      reductions: [{ kind: "sumOfProducts", a: 1, b: 1, value: 2 }],
      start: null,
      end: null,
      where: null,
      ahead: [],
    },
    { op: "loadPerRow", operand: 1, element: 0 },
    { op: "mul", a: 0, b: 4 },
    { op: "div", a: 5, b: 2 },
    { op: "load", operand: 0 },
    { op: "mul", a: 7, b: 6 },
    { op: "constant", bits: 0x3f800000 },
    { op: "add", a: 8, b: 9 },
    { op: "store", operand: 2, a: 10 },
    {
      op: "columns",
      body: [7, 8, 10, 11],
      reductions: [],
      start: null,
      end: null,
      where: null,
      ahead: [],
    },
  ]);
  assert.deepEqual(program.uniforms, [0, 9]);
  assert.deepEqual(program.body, [3, 4, 5, 6, 12]);
});

test("the slots are the header, the operands in order, then the scalars", () => {
  const program = example();
  const names = slotNames(program);
  assert.deepEqual(names.slice(0, 3), ["rows", "columns", "rowsPerTask"]);
  assert.equal(names[operandSlot(1)], "weight.byteOffset");
  assert.equal(names[operandSlot(1) + 1], "weight.stride");
  assert.equal(names[scalarSlot(program, 0)], "scale");
  assert.equal(names.length, 10);
});

test("a value from before a loop lives until the loop ends; uniforms have no last use", () => {
  const program = example();
  const { position, lastUse } = analyseLiveness(program);
  const loopEnd = position.get(12);
  assert.equal(lastUse.get(6), loopEnd);
  assert.equal(lastUse.get(7), position.get(8));
  assert.equal(lastUse.get(0), undefined);
  assert.equal(lastUse.get(12), undefined);
  const weights = uniformWeights(program);
  assert.ok(weights.get(9)! > weights.get(0)!, "a constant in a loop outweighs one outside");
});

test("equal constants are recorded once, by their bits", () => {
  const program = rowProgram({
    name: "constants",
    operands: { out: { kind: "row", dtype: "f32" } },
    scalars: [],
    body(v, { out }) {
      assert.equal(v.float(1), v.integer(0x3f800000));
      assert.notEqual(v.float(0), v.float(-0));
      v.columns(() => v.store(out, v.add(v.float(0), v.float(-0))));
    },
  });
  assert.equal(program.uniforms.length, 3);
});
