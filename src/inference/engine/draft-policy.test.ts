/** @file How many drafts pay, on simulated machines and models. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { DRAFTS_MAX, DraftPolicy } from "./draft-policy.ts";

const SEED = 41;
/** As the engine has it. */
const TRIED = 16;

interface Simulated {
  /** Chance of each draft to stand. */
  readonly chance: number;
  readonly passMs: (numDrafts: number, numStreams: number) => number;
  readonly draftMs: number;
}

interface Played {
  readonly tokens: number;
  readonly milliseconds: number;
  readonly depths: readonly number[];
}

/** Requests one after another, each of `numStreams` streams of a length, as an engine runs them. */
class Machine {
  readonly policy = new DraftPolicy();
  readonly #random = new Random(SEED);
  readonly #simulated: Simulated;
  /** Shapes of passes that were seen: what comes for the first time is slow. */
  readonly #seen = new Map<string, number>();

  constructor(simulated: Simulated) {
    this.#simulated = simulated;
  }

  request(length: number, numStreams = 1): Played {
    const { chance, draftMs } = this.#simulated;
    const { policy } = this;
    let drafts = policy.admits(numStreams);
    let [tokens, milliseconds, numDrafts, numTried] = [0, 0, 0, 0];
    const depths: number[] = [];
    while (tokens < length) {
      const passMs = this.#passMs(numDrafts, numStreams);
      let numStood = 0;
      while (numStood < numDrafts && this.#random.uniform() < chance) numStood++;
      if (numDrafts > 0) policy.noteDrafts(numDrafts, numStood);
      numTried += numDrafts;
      tokens += 1 + numStood;
      const verified = numDrafts;
      if (numTried >= TRIED && policy.loses(numStreams)) drafts = false;
      numDrafts = drafts ? policy.depth(numStreams) : 0;
      depths.push(numDrafts);
      // Without drafts the module still reads.
      const spentMs = drafts ? Math.max(1, numDrafts) * draftMs * this.#noise() : 0;
      milliseconds += passMs + spentMs;
      const step = { numStreams, numDrafts: verified, numNext: numDrafts };
      policy.noteStep({ ...step, passMs, draftMs: spentMs });
    }
    return { tokens, milliseconds, depths };
  }

  #passMs(numDrafts: number, numStreams: number): number {
    const shape = `${numDrafts} ${numStreams}`;
    const seen = this.#seen.get(shape) ?? 0;
    this.#seen.set(shape, seen + 1);
    return this.#simulated.passMs(numDrafts, numStreams) * (seen < 2 ? 20 : 1) * this.#noise();
  }

  /** Some noise, and now and then somebody else who has the processor. */
  #noise(): number {
    return this.#random.below(40) === 0 ? 4 : 0.95 + this.#random.uniform() / 10;
  }
}

/** Tokens in a time against none drafted. */
function gainOf({ chance, passMs, draftMs }: Simulated, count: number, numStreams = 1): number {
  const tokens = Array.from({ length: count + 1 }, (_, index) => chance ** index);
  const sum = tokens.reduce((total, each) => total + each, 0);
  return (sum * passMs(0, numStreams)) / (passMs(count, numStreams) + count * draftMs);
}

function gainOfBest(simulated: Simulated, numStreams = 1): number {
  const gains = Array.from({ length: DRAFTS_MAX + 1 }, (_, count) =>
    gainOf(simulated, count, numStreams),
  );
  return Math.max(...gains);
}

describe("the policy of drafts", () => {
  it("comes near the best number of drafts, whatever they cost and how often they stand", () => {
    for (const chance of [0, 0.3, 0.6, 0.8, 0.95]) {
      for (const draftMs of [0.5, 2, 5]) {
        for (const perDraft of [0, 1, 4]) {
          const simulated = { chance, draftMs, passMs: (n: number) => 10 + perDraft * n };
          const machine = new Machine(simulated);
          for (let warm = 0; warm < 4; warm++) machine.request(256);
          let [tokens, milliseconds] = [0, 0];
          for (let request = 0; request < 40; request++) {
            const played = machine.request(256);
            tokens += played.tokens;
            milliseconds += played.milliseconds;
          }
          // Of the noise, the share that plain steps have too.
          const gain = (tokens * 10 * (1 + 3 / 40)) / milliseconds;
          const best = gainOfBest(simulated);
          const where = `chance ${chance}, ${draftMs} ms a draft, ${perDraft} ms to verify`;
          assert.ok(gain > 0.93 * best, `${where}: ${gain} of ${best}`);
        }
      }
    }
  });

  it("loses little on the first request where drafts never stand", () => {
    for (const draftMs of [0.5, 5]) {
      const simulated = { chance: 0, draftMs, passMs: (n: number) => 10 + 2 * n };
      const { tokens, milliseconds, depths } = new Machine(simulated).request(400);
      // First passes of a shape are slow: two without drafts, two with one.
      const plain = tokens * 10 * (1 + 3 / 40) + 4 * 190;
      assert.ok(milliseconds < 1.1 * plain, `${milliseconds} against ${plain}`);
      assert.ok(depths.slice(60).every((depth) => depth === 0));
    }
  });

  it("tells many streams, where drafts slow the step, from one", () => {
    const passMs = (numDrafts: number, numStreams: number): number =>
      10 + (numStreams === 1 ? 0.5 : 8) * numDrafts;
    const simulated = { chance: 0.7, draftMs: 1, passMs };
    const machine = new Machine(simulated);
    for (let request = 0; request < 10; request++) {
      machine.request(200, 1);
      machine.request(200, 16);
    }
    const admitted = (numStreams: number): number => {
      const asked = Array.from({ length: 32 }, () => machine.policy.admits(numStreams));
      return asked.filter(Boolean).length;
    };
    assert.equal(admitted(1), 32);
    assert.equal(admitted(16), 2);
    assert.equal(admitted(64), 2, "taken from fewer streams");
  });

  it("notices when drafts begin to stand", () => {
    const simulated = { chance: 0, draftMs: 1, passMs: (n: number) => 10 + n };
    const machine = new Machine(simulated);
    for (let request = 0; request < 20; request++) machine.request(100);
    assert.equal(machine.policy.loses(1), true);
    simulated.chance = 0.9;
    for (let request = 0; request < 64; request++) machine.request(100);
    assert.equal(machine.policy.loses(1), false);
  });

  it("answers where no stream runs, as while a preempted one is read again", () => {
    const policy = new DraftPolicy();
    assert.equal(policy.loses(0), policy.loses(1));
  });
});
