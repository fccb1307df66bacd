/** @file The faster way is taken, and left when the other becomes faster. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../base/random.ts";
import { FasterWay, type Way } from "./faster-way.ts";

const SEED = 23;

test("nearly all runs take the faster way, whichever it is, and follow a change", () => {
  const random = new Random(SEED);
  const ways = new FasterWay();
  const count = (milliseconds: Readonly<Record<Way, number>>, numRuns: number) => {
    const counts = { shared: 0, alone: 0 };
    for (let run = 0; run < numRuns; run++) {
      const way = ways.next();
      counts[way]++;
      // One run in ten is interrupted.
      const factor = random.below(10) === 0 ? 20 : 0.95 + random.uniform() / 10;
      ways.note(way, milliseconds[way] * factor);
    }
    return counts;
  };
  const quiet = count({ shared: 1, alone: 1.5 }, 2000);
  assert.ok(quiet.shared > 1900, `seed ${SEED}: ${quiet.shared}`);
  // Another program takes the other core.
  const busy = count({ shared: 3, alone: 1.5 }, 2000);
  assert.ok(busy.alone > 1900, `seed ${SEED}: ${busy.alone}`);
  // And leaves it again: noticed within a few trials.
  const again = count({ shared: 1, alone: 1.5 }, 4000);
  assert.ok(again.shared > 3400, `seed ${SEED}: ${again.shared}`);
});
