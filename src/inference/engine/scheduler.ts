/**
 * @file What one step of the engine runs: state in, plan out. A pure function, so that it can be
 * tested without a model.
 *
 *   1. Sequences that decode go first, the longest admitted first: a token each (and their drafts),
 *      so that a long prompt never stalls a stream.
 *   2. What is left of the step's token budget goes to prompts that are being read, in chunks, and
 *   3. to waiting sequences, as far as slots and blocks last.
 *
 * Between prompts the account served least comes first, within it the tenant served least, then
 * the one who asked first; so who has many requests, or many users, cannot crowd out who has few.
 * When blocks run out, the sequence admitted last gives its own back and waits (it is read anew
 * later): the one admitted first always goes on, so some sequence always ends. Nobody is admitted
 * in a step that preempts.
 */
import { assert } from "../../base/errors.ts";
import type { FairShares } from "./fair-shares.ts";

export interface SchedulableSequence {
  readonly id: number;
  readonly tenant: string;
  /** Order of asking. */
  readonly arrival: number;
  /** Order of admission; null while it waits. */
  readonly admission: number | null;
  /** Tokens that are known but not in its cache: of a prompt, or the last one and its drafts. */
  readonly numPending: number;
  /** Whether its pending tokens are one generated token and drafts, which go in one piece. */
  readonly isDecoding: boolean;
  /** Blocks that reading `count` more tokens would take from the pool. */
  countMissing(count: number): number;
  /** Blocks that would be free if it gave its own back. */
  readonly numOwnBlocks: number;
}

export interface ScheduleLimits {
  /** Tokens of a step. */
  readonly stepTokens: number;
  /** Sequences that run at once. */
  readonly runningMax: number;
  /** Blocks free now. */
  readonly freeBlocks: number;
  /** What all tenants were given so far. */
  readonly shares: FairShares;
}

export interface PlannedRun {
  readonly id: number;
  readonly numTokens: number;
}

export interface SchedulePlan {
  /** Who gives blocks back and waits, in this order, before anything runs. */
  readonly preempt: readonly number[];
  /** Who starts; each is in `run` too. */
  readonly admit: readonly number[];
  readonly run: readonly PlannedRun[];
}

/** Of the sequences that wait for turns: whose prompts are not read yet, once or anew. */
export function tenantsAsking(
  sequences: readonly Pick<SchedulableSequence, "tenant" | "isDecoding">[],
): string[] {
  return sequences.flatMap(({ tenant, isDecoding }) => (isDecoding ? [] : [tenant]));
}

export function planStep(
  sequences: readonly SchedulableSequence[],
  limits: ScheduleLimits,
): SchedulePlan {
  return new StepPlan(sequences, limits).make();
}

class StepPlan {
  readonly #limits: ScheduleLimits;
  readonly #waiting: SchedulableSequence[];
  /** In the order of admission. */
  readonly #running: SchedulableSequence[];
  readonly #preempt: number[] = [];
  readonly #admit: number[] = [];
  readonly #run: PlannedRun[] = [];
  readonly #shares: FairShares;
  #tokensLeft: number;
  #blocksLeft: number;

  constructor(sequences: readonly SchedulableSequence[], limits: ScheduleLimits) {
    assert(limits.stepTokens >= 1 && limits.runningMax >= 1, "a step has room for something");
    this.#limits = limits;
    this.#waiting = sequences.filter(({ admission }) => admission === null);
    this.#running = sequences
      .filter(({ admission }) => admission !== null)
      .sort((a, b) => a.admission! - b.admission!);
    this.#shares = limits.shares.copy();
    this.#tokensLeft = limits.stepTokens;
    this.#blocksLeft = limits.freeBlocks;
  }

  make(): SchedulePlan {
    this.#planDecoding();
    this.#planPrompts();
    if (this.#preempt.length === 0) this.#planAdmissions();
    return { preempt: this.#preempt, admit: this.#admit, run: this.#run };
  }

  #planDecoding(): void {
    for (const sequence of this.#running.filter(({ isDecoding }) => isDecoding)) {
      if (this.#isPreempted(sequence)) continue;
      const { numPending } = sequence;
      // Drafts are left out where the budget ends; the token itself always goes.
      const numTokens = Math.max(1, Math.min(numPending, this.#tokensLeft));
      if (this.#makeRoom(sequence, numTokens)) this.#take(sequence, numTokens);
    }
  }

  #planPrompts(): void {
    for (const sequence of this.#inTurn(this.#running.filter(({ isDecoding }) => !isDecoding))) {
      if (this.#tokensLeft <= 0) return;
      if (this.#isPreempted(sequence)) continue;
      const numTokens = Math.min(sequence.numPending, this.#tokensLeft);
      if (this.#makeRoom(sequence, numTokens)) this.#take(sequence, numTokens);
    }
  }

  #planAdmissions(): void {
    let numRunning = this.#running.length;
    for (const sequence of this.#inTurn(this.#waiting)) {
      if (this.#tokensLeft <= 0 || numRunning >= this.#limits.runningMax) return;
      const numTokens = Math.min(sequence.numPending, this.#tokensLeft);
      // Room for all of its prompt, or it would be preempted by the next token of somebody else.
      if (sequence.countMissing(sequence.numPending) > this.#blocksLeft) return;
      this.#admit.push(sequence.id);
      this.#take(sequence, numTokens);
      numRunning++;
    }
  }

  /** One after another, each time the first of whose turn it is. */
  *#inTurn(sequences: readonly SchedulableSequence[]): Generator<SchedulableSequence> {
    const left = [...sequences].sort((a, b) => a.arrival - b.arrival);
    while (left.length > 0) {
      const index = this.#shares.nextOf(left.map(({ tenant }) => tenant));
      const [next] = left.splice(index, 1);
      yield next!;
    }
  }

  #isPreempted({ id }: SchedulableSequence): boolean {
    return this.#preempt.includes(id);
  }

  /** Blocks for a running sequence, taken from those admitted after it; false: it goes itself. */
  #makeRoom(sequence: SchedulableSequence, numTokens: number): boolean {
    const needed = sequence.countMissing(numTokens);
    while (needed > this.#blocksLeft) {
      const victim = this.#running.findLast((each) => !this.#isPreempted(each));
      assert(victim !== undefined, "a sequence that asks for blocks runs");
      this.#preempt.push(victim.id);
      this.#blocksLeft += victim.numOwnBlocks;
      this.#untake(victim);
      if (victim === sequence) return false;
    }
    return true;
  }

  #take(sequence: SchedulableSequence, numTokens: number): void {
    const { id, tenant } = sequence;
    this.#run.push({ id, numTokens });
    this.#tokensLeft -= numTokens;
    this.#blocksLeft -= sequence.countMissing(numTokens);
    this.#shares.give(tenant, numTokens);
  }

  /** Take a planned run back. */
  #untake(sequence: SchedulableSequence): void {
    const at = this.#run.findIndex(({ id }) => id === sequence.id);
    if (at < 0) return;
    const [{ numTokens }] = this.#run.splice(at, 1) as [PlannedRun];
    this.#tokensLeft += numTokens;
    this.#blocksLeft += sequence.countMissing(numTokens);
    this.#shares.give(sequence.tenant, -numTokens);
  }
}
