/** @file The average kept by a thread equals the one computed in turn. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../base/random.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { ParameterAverage } from "./ema.ts";

const SEED = 7;

function makeValues(lengths: { decayed: number; undecayed: number; experts: number }) {
  const arena = new Arena(CpuMemory.create(null), "test");
  const span = (length: number) => {
    const values = arena.allocate("f32", [1, length]);
    return { values, gradients: values };
  };
  return {
    arena,
    decayed: span(lengths.decayed),
    undecayed: span(lengths.undecayed),
    experts: span(lengths.experts),
  };
}

test("the average equals the serial computation to the bit, whatever the timing", async () => {
  const values = makeValues({ decayed: 5000, undecayed: 77, experts: 300 });
  const random = new Random(SEED);
  const move = (): void => {
    for (const { values: tensor } of [values.decayed, values.undecayed, values.experts]) {
      const elements = view(tensor);
      for (let index = 0; index < elements.length; index++) elements[index] = random.normal();
    }
  };
  move();
  const serial = view(values.decayed.values).slice();
  await using average = await ParameterAverage.start(values, values.arena, { decay: 0.95 });
  for (let n = 1; n <= 40; n++) {
    average.finish();
    move();
    average.begin(n);
    const current = view(values.decayed.values);
    const decay = Math.min(0.95, (1 + n) / (10 + n));
    for (let index = 0; index < serial.length; index++) {
      serial[index] = serial[index]! + (current[index]! - serial[index]!) * (1 - decay);
    }
  }
  average.finish();
  assert.deepEqual([...view(average.state.decayed)], [...serial], `seed ${SEED}`);
});

test("a trainer that comes back too early waits, and the wait is counted", async () => {
  const values = makeValues({ decayed: 3_000_000, undecayed: 8, experts: 0 });
  view(values.decayed.values).fill(1);
  await using average = await ParameterAverage.start(values, values.arena, { decay: 0.5 });
  view(values.decayed.values).fill(2);
  average.begin(1);
  average.finish();
  assert.equal(average.waits, 1);
  assert.ok(average.waitedSeconds > 0);
  average.finish();
  assert.equal(average.waits, 1, "an update that is done costs no wait");
  assert.equal(view(average.state.decayed)[2_999_999], Math.fround(1 + 9 / 11));
});

test("exchanging twice restores the parameters and the average", async () => {
  const values = makeValues({ decayed: 64, undecayed: 8, experts: 8 });
  view(values.decayed.values).fill(1);
  await using average = await ParameterAverage.start(values, values.arena, { decay: 0.5 });
  view(values.decayed.values).fill(3);
  average.exchange();
  assert.equal(view(values.decayed.values)[5], 1);
  assert.equal(view(average.state.decayed)[5], 3);
  average.exchange();
  assert.equal(view(values.decayed.values)[5], 3);
});
