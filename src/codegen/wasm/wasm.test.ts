/**
 * @file The assembler: golden bytes, every opcode accepted by the engine, control flow that runs.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { signed, unsigned } from "./encoding.ts";
import { hasRelaxedSimd, hasSharedSimd } from "./features.ts";
import { type Local, WasmFunction } from "./function.ts";
import { assembleModule, instantiate } from "./module.ts";
import {
  LANE_MEMORY_OPS,
  LANE_OPS,
  type LaneMemoryOp,
  type LaneOp,
  MEMORY_OPS,
  type MemoryOp,
  VECTOR_OPS,
  type VectorOp,
} from "./opcodes.ts";

const hex = (bytes: Iterable<number>): string =>
  [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

test("LEB128 matches the specification's examples and its edges", () => {
  assert.equal(hex(unsigned(624485)), "e5 8e 26");
  assert.equal(hex(unsigned(0)), "00");
  assert.equal(hex(unsigned(2 ** 32 - 1)), "ff ff ff ff 0f");
  assert.equal(hex(signed(-123456)), "c0 bb 78");
  assert.equal(hex(signed(63)), "3f");
  assert.equal(hex(signed(64)), "c0 00");
  assert.equal(hex(signed(-(2 ** 31))), "80 80 80 80 78");
});

test("a module with one function has exactly these bytes", () => {
  const add = new WasmFunction(["i32", "i32"]);
  const sum = add.local("i32");
  add.get(0).get(1).op("i32.add").set(sum);
  add.get(0).get(sum).memory("i32.store", 300);
  const lines = [
    "00 61 73 6d 01 00 00 00",
    "01 06 01 60 02 7f 7f 00",
    "02 12 01 03 65 6e 76 06 6d 65 6d 6f 72 79 02 03 00 80 80 04",
    "03 02 01 00",
    "07 07 01 03 61 64 64 00 00",
    "0a 15 01 13 01 01 7f 20 00 20 01 6a 21 02 20 00 20 02 36 00 ac 02 0b",
  ];
  const bytes = assembleModule({ add });
  assert.equal(hex(bytes), lines.join(" "));
  assert.ok(WebAssembly.validate(bytes));
});

/** How many v128 operands an instruction takes. */
const ARITY: Partial<Record<VectorOp, number>> = {
  "f32x4.nearest": 1,
  "i32x4.extend_low_i16x8_u": 1,
  "i16x8.extend_low_i8x16_u": 1,
  "f32x4.sqrt": 1,
  "i32x4.trunc_sat_f32x4_s": 1,
  "f32x4.convert_i32x4_s": 1,
  "v128.bitselect": 3,
  "f32x4.relaxed_madd": 3,
};

test("the engine accepts every vector instruction with the operands its name promises", () => {
  assert.ok(hasSharedSimd());
  for (const name of Object.keys(VECTOR_OPS) as VectorOp[]) {
    if (name.includes("relaxed") && !hasRelaxedSimd()) continue;
    const body = new WasmFunction(["i32", "f32"]);
    const vector = body.local("v128");
    if (name.endsWith(".splat")) body.get(name.startsWith("f32") ? 1 : 0);
    else {
      const shift = name.includes(".sh");
      for (let i = 0; i < (shift ? 1 : (ARITY[name] ?? 2)); i++) body.get(vector);
      if (shift) body.get(0);
    }
    body.op(name).set(vector);
    assert.ok(WebAssembly.validate(assembleModule({ body })), name);
  }
});

test("the engine accepts every load and store with the operands its name promises", () => {
  const declare = (): { body: WasmFunction; vector: Local } => {
    const body = new WasmFunction(["i32", "f32", "f64"]);
    return { body, vector: body.local("v128") };
  };
  const typeLocal = (name: string, vector: Local): Local =>
    name.startsWith("v128") ? vector : name.startsWith("f32") ? 1 : name.startsWith("f64") ? 2 : 0;
  for (const name of Object.keys(MEMORY_OPS) as MemoryOp[]) {
    const { body, vector } = declare();
    body.get(0);
    if (name.includes("store")) body.get(typeLocal(name, vector)).memory(name, 70000);
    else body.memory(name, 70000).set(typeLocal(name, vector));
    assert.ok(WebAssembly.validate(assembleModule({ body })), name);
  }
  for (const name of Object.keys(LANE_MEMORY_OPS) as LaneMemoryOp[]) {
    const { body, vector } = declare();
    body.get(0).get(vector).laneMemory(name, 1, 8);
    assert.ok(WebAssembly.validate(assembleModule({ body })), name);
  }
  for (const name of Object.keys(LANE_OPS) as LaneOp[]) {
    const { body, vector } = declare();
    body.get(vector).lane(name, 3).set(typeLocal(name, vector));
    assert.ok(WebAssembly.validate(assembleModule({ body })), name);
  }
});

test("countdown runs its body once per whole step and leaves the rest", () => {
  const run = new WasmFunction(["i32", "i32"]);
  const rounds = run.local("i32");
  run.countdown(1, 4, () => run.addConst(rounds, 1));
  run.get(0).get(rounds).memory("i32.store");
  run.get(0).get(1).memory("i32.store", 4);
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536, shared: true });
  const { run: call } = instantiate<"run">(assembleModule({ run }), memory);
  const words = new Int32Array(memory.buffer);
  for (const [count, wantRounds, wantRest] of [
    [-3, 0, -3],
    [0, 0, 0],
    [3, 0, 3],
    [4, 1, 0],
    [11, 2, 3],
  ] as const) {
    call(64, count);
    assert.deepEqual([words[16], words[17]], [wantRounds, wantRest], `count ${count}`);
  }
});

test("lanes are shuffled as named, and the two arms of `when` exclude each other", () => {
  const run = new WasmFunction(["i32"]);
  run.get(0).v128Const([10, 11, 12, 13]).v128Const([14, 15, 16, 17]).shuffle32([1, 0, 7, 2]);
  run.memory("v128.store");
  run.get(0).i32Const(0).op("i32.lt_u");
  run.when(
    () => run.get(0).i32Const(1).memory("i32.store", 16),
    () => run.get(0).i32Const(2).memory("i32.store", 16),
  );
  const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536, shared: true });
  instantiate<"run">(assembleModule({ run }), memory).run(0);
  assert.deepEqual([...new Int32Array(memory.buffer, 0, 5)], [11, 10, 17, 12, 2]);
});
