/**
 * @file The scheduler over random workloads without a model: budgets hold, blocks suffice, streams
 * are never stalled, tenants share, everybody ends.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { FairShares } from "./fair-shares.ts";
import {
  planStep,
  type SchedulableSequence,
  type ScheduleLimits,
  tenantsAsking,
} from "./scheduler.ts";

const SEED = 31;
const BLOCK = 64;

class Simulated implements SchedulableSequence {
  readonly id: number;
  readonly tenant: string;
  readonly promptTokens: number;
  readonly wanted: number;
  admission: number | null = null;
  cached = 0;
  generated = 0;
  blocks = 0;
  /** The step that it comes before. */
  readonly comesAt: number;

  constructor(id: number, tenant: string, promptTokens: number, wanted: number, comesAt = 0) {
    this.id = id;
    this.tenant = tenant;
    this.promptTokens = promptTokens;
    this.wanted = wanted;
    this.comesAt = comesAt;
  }

  get arrival(): number {
    return this.id;
  }

  get numPending(): number {
    return this.promptTokens + this.generated - this.cached;
  }

  get isDecoding(): boolean {
    return this.generated > 0 && this.numPending === 1;
  }

  countMissing(count: number): number {
    return Math.max(0, Math.ceil((this.cached + count) / BLOCK) - this.blocks);
  }

  get numOwnBlocks(): number {
    return this.blocks;
  }
}

interface Simulation {
  readonly numBlocks: number;
  readonly limits: Omit<ScheduleLimits, "freeBlocks" | "shares">;
  readonly sequences: Simulated[];
  /** After each step. */
  readonly observe?: (run: readonly { id: number; numTokens: number }[]) => void;
}

/** Run to the end; returns the order in which sequences ended. */
function simulate({ numBlocks, limits, sequences, observe }: Simulation): Simulated[] {
  const ended: Simulated[] = [];
  const shares = new FairShares();
  const coming = [...sequences].sort((a, b) => a.comesAt - b.comesAt);
  let open: Simulated[] = [];
  let free = numBlocks;
  let admissions = 0;
  for (let step = 0; open.length + coming.length > 0; step++) {
    assert.ok(step < 20_000, `seed ${SEED}: the workload never ends`);
    while (coming[0] !== undefined && coming[0].comesAt <= step) {
      const sequence = coming.shift()!;
      shares.enter(sequence.tenant, tenantsAsking(open));
      open.push(sequence);
    }
    const plan = planStep(open, { ...limits, freeBlocks: free, shares });
    const byId = (id: number): Simulated => open.find((each) => each.id === id)!;
    for (const id of plan.preempt) {
      const sequence = byId(id);
      free += sequence.blocks;
      sequence.blocks = 0;
      sequence.cached = 0;
      sequence.admission = null;
    }
    for (const id of plan.admit) byId(id).admission = admissions++;
    const running = open.filter(({ admission }) => admission !== null);
    assert.ok(running.length <= limits.runningMax);
    const decoding = running.filter(({ isDecoding }) => isDecoding);
    for (const { id } of decoding) {
      const isRun = plan.run.some((run) => run.id === id);
      assert.ok(isRun, `seed ${SEED}, step ${step}: stream ${id} was stalled`);
    }
    const tokens = plan.run.reduce((sum, { numTokens }) => sum + numTokens, 0);
    assert.ok(tokens <= Math.max(limits.stepTokens, decoding.length));
    assert.ok(plan.run.length > 0, `seed ${SEED}, step ${step}: nothing runs`);
    for (const { id, numTokens } of plan.run) {
      const sequence = byId(id);
      const missing = sequence.countMissing(numTokens);
      free -= missing;
      sequence.blocks += missing;
      assert.ok(free >= 0, `seed ${SEED}, step ${step}: blocks that are not there`);
      sequence.cached += numTokens;
      shares.give(sequence.tenant, numTokens);
      if (sequence.numPending === 0) sequence.generated++;
      if (sequence.generated < sequence.wanted) continue;
      free += sequence.blocks;
      shares.leave(sequence.tenant);
      ended.push(sequence);
      open = open.filter((each) => each !== sequence);
    }
    observe?.(plan.run);
  }
  assert.equal(free, numBlocks);
  return ended;
}

describe("scheduler", () => {
  it("ends every random workload within its budgets, however few the blocks", () => {
    const random = new Random(SEED);
    for (let round = 0; round < 40; round++) {
      const most = 1 + random.below(12);
      const sequences = Array.from({ length: 1 + random.below(25) }, (_, id) => {
        const prompt = 1 + random.below(BLOCK * most - 40);
        return new Simulated(id, `t${random.below(3)}`, Math.max(1, prompt), 1 + random.below(39));
      });
      const stepTokens = 1 + random.below(300);
      const limits = { stepTokens, runningMax: 1 + random.below(10) };
      const numBlocks = most + random.below(3 * most);
      assert.equal(simulate({ numBlocks, limits, sequences }).length, sequences.length);
    }
  });

  it("reads a long prompt in chunks beside a running stream", () => {
    const stream = new Simulated(0, "a", 10, 20);
    const long = new Simulated(1, "b", 1000, 1);
    const chunks: number[] = [];
    const observe = (run: readonly { id: number; numTokens: number }[]): void => {
      chunks.push(run.find(({ id }) => id === 1)?.numTokens ?? 0);
    };
    const limits = { stepTokens: 100, runningMax: 4 };
    simulate({ numBlocks: 40, limits, sequences: [stream, long], observe });
    assert.deepEqual(chunks.slice(0, 4), [90, 99, 99, 99]);
  });

  /** Where the last of these tenants ends, asking after all the others. */
  const placeOf = (last: string, ...others: string[]): number => {
    const sequences = [...others, last].map((tenant, id) => new Simulated(id, tenant, 100, 5));
    const limits = { stepTokens: 100, runningMax: 2 };
    const ended = simulate({ numBlocks: 40, limits, sequences });
    return ended.findIndex(({ tenant }) => tenant === last);
  };
  const TWENTY = Array.from({ length: 20 }, (_, index) => index);

  it("lets a tenant with one request pass one with many", () => {
    assert.ok(placeOf("one", ...TWENTY.map(() => "many")) < 4);
    assert.ok(placeOf("key/one", ...TWENTY.map(() => "key/many")) < 4);
  });

  it("gives an account no more for naming many users, and these share what it gets", () => {
    const invented = TWENTY.map((index) => `many/user ${index}`);
    assert.ok(placeOf("one", ...invented) < 4);
    assert.ok(placeOf("one/user", ...invented) < 4);
    // A user is of its account: one more of them has no claim on what others get.
    assert.equal(placeOf("many/last", ...invented), 20);
    assert.ok(placeOf("many/last", ...TWENTY.map(() => "many"), "one", "one") < 6);
  });

  it("gives turns back with a run that is taken back in the same step", () => {
    const shares = new FairShares();
    const prompt = (tenant: string, admission: number, numPending: number, needs: number) => {
      shares.enter(tenant, []);
      const asked = { id: admission, tenant, arrival: -admission, admission, numPending };
      return { ...asked, isDecoding: false, countMissing: () => needs, numOwnBlocks: 1 };
    };
    // The last admitted, of the tenant served least, takes the only block and loses it to the
    // first: its tenant has been given nothing, and is still the one to come next.
    const sequences = [prompt("b", 3, 40, 1), prompt("a", 0, 20, 1), prompt("b", 1, 20, 0)];
    sequences.push(prompt("c", 2, 20, 0));
    shares.give("a", 1);
    shares.give("c", 2);
    const limits = { stepTokens: 100, runningMax: 4, freeBlocks: 1, shares };
    const { preempt, run } = planStep(sequences, limits);
    assert.deepEqual(preempt, [3]);
    assert.deepEqual(
      run.map(({ id }) => id),
      [0, 1, 2],
    );
  });

  it("lets nobody save up turns by a slow answer, of accounts as of users", () => {
    for (const [slow, busy] of [
      ["slow", "busy"],
      ["key/slow", "key/busy"],
      ["slow/one", "busy"],
    ] as const) {
      const stream = new Simulated(0, slow, 1, 200);
      const prompts = (first: number, count: number, tenant: string, comesAt: number) =>
        Array.from({ length: count }, (_, index) => {
          return new Simulated(first + index, tenant, 100, 1, comesAt);
        });
      const sequences = [stream, ...prompts(1, 60, busy, 0), ...prompts(61, 20, slow, 30)];
      const limits = { stepTokens: 101, runningMax: 8 };
      const ended = simulate({ numBlocks: 80, limits, sequences });
      const firstTen = ended.filter(({ id }) => id > 60).slice(0, 10);
      const [from, to] = [firstTen[0]!, firstTen.at(-1)!].map((one) => ended.indexOf(one));
      const between = ended.slice(from, to).filter(({ tenant }) => tenant === busy);
      assert.ok(between.length >= 8, `${between.length} of ${busy} beside ten of ${slow}`);
    }
  });
});
