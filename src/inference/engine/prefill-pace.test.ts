/** @file The pace of reading prompts beside streams, on simulated machines of many speeds. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { PrefillPace } from "./prefill-pace.ts";

const SEED = 17;

/** What a step takes on a machine, in milliseconds. */
interface Machine {
  /** Of `numStreams` streams, and of prompt tokens of which the first is at `position`. */
  stepMs(numStreams: number, promptTokens: number, position: number): number;
}

/** Fixed costs, costs a token, costs that grow with the context, noise. */
function randomMachine(random: Random): Machine {
  const launch = 0.2 + random.uniform() * 5;
  const streamMs = 0.2 + random.uniform() * 20;
  const tokenMs = streamMs * (0.02 + random.uniform() * 0.06);
  const firstMs = random.uniform() * 0.2 * launch;
  const growth = random.uniform() / 8192;
  return {
    stepMs: (numStreams, promptTokens, position) => {
      const first = promptTokens > 0 ? firstMs : 0;
      const prompt = first + promptTokens * tokenMs * (1 + growth * position);
      return (launch + numStreams * streamMs + prompt) * (0.95 + random.uniform() / 10);
    },
  };
}

/** Steps beside streams until a prompt is read: how long each was, and how many tokens it took. */
function readPrompt(pace: PrefillPace, machine: Machine, numStreams: number, length: number) {
  const steps: { milliseconds: number; tokens: number; position: number }[] = [];
  for (let position = 0; position < length; ) {
    const tokens = Math.min(pace.chunk(numStreams), 256, length - position);
    const milliseconds = machine.stepMs(numStreams, tokens, position);
    pace.note(numStreams, tokens, milliseconds);
    steps.push({ milliseconds, tokens, position });
    position += tokens;
  }
  return steps;
}

describe("the pace of reading prompts", () => {
  it("keeps steps below twice what streams alone take, and reads what that allows", () => {
    const random = new Random(SEED);
    for (let round = 0; round < 200; round++) {
      const machine = randomMachine(random);
      const numStreams = 1 + random.below(16);
      const steps = readPrompt(new PrefillPace(), machine, numStreams, 8192);
      const alone = machine.stepMs(numStreams, 0, 0);
      const times = steps.map(({ milliseconds }) => milliseconds).sort((a, b) => a - b);
      const where = `seed ${SEED}, round ${round}`;
      const late = times[Math.floor(0.95 * times.length)]!;
      assert.ok(late < 2.1 * alone, `${where}: ${late} against ${alone}`);
      const mean = times.reduce((sum, time) => sum + time, 0) / times.length;
      assert.ok(mean > 1.2 * alone, `${where}: only ${mean} against ${alone}`);
    }
  });

  it("measures the streams anew when their number changes, and now and then", () => {
    const pace = new PrefillPace();
    assert.equal(pace.chunk(8), 0);
    pace.note(8, 0, 10);
    pace.note(8, pace.chunk(8), 12);
    assert.ok(pace.chunk(8) > 0);
    assert.ok(pace.chunk(9) > 0);
    assert.equal(pace.chunk(2), 0);
    for (let step = 0; step < 64; step++) pace.note(8, 4, 12);
    assert.equal(pace.chunk(8), 0);
    pace.note(8, 0, 10);
    assert.ok(pace.chunk(8) > 0);
  });

  it("reads on where any prompt slows the streams", () => {
    const pace = new PrefillPace();
    const machine: Machine = { stepMs: (_, promptTokens) => 1 + 9 * promptTokens };
    const steps = readPrompt(pace, machine, 1, 1000);
    const larger = steps.filter(({ tokens }) => tokens > 1);
    // Whether two cost more than one has to be tried.
    assert.ok(larger.length <= 1, `${larger.length} steps took more than one token`);
  });

  it("reads a few tokens at once where they cost what one does", () => {
    const pace = new PrefillPace();
    const machine: Machine = {
      stepMs: (_, promptTokens, position) =>
        1 + Math.ceil(promptTokens / 4) * (1 + (9 * position) / 1000),
    };
    const steps = readPrompt(pace, machine, 1, 1000);
    assert.ok(steps.every(({ tokens }) => tokens <= 4));
    const mean = 1000 / steps.filter(({ tokens }) => tokens > 0).length;
    assert.ok(mean > 3, `${mean} tokens a step`);
  });
});
