/**
 * @file The compiled form of a constraint: a network of byte automata that call each other.
 *
 * A rule is an automaton with one start and one accepting state. Its edges read a byte of a range,
 * read nothing, or call a rule and go on when that one accepts. Without recursion this is a regular
 * language; with it, a context-free one. All of it is typed arrays, so a network compiled in one
 * thread is sent to another as it is.
 *
 * `finish` leaves out every edge that cannot lead to an end, so a text that can be read so far can
 * always be completed. It refuses a network that accepts no text, and a rule that calls itself
 * before it has read anything. States are limited: a huge repetition ends with an error.
 */
import { OperationalError } from "../../base/errors.ts";

export const STATES_MAX = 60_000;
const REPETITIONS_MAX = 20_000;
/** In place of a called rule: the edge reads nothing. */
export const NO_RULE = -1;

export interface Network {
  /** By rule; rule 0 is the whole text. */
  readonly ruleStart: Int32Array;
  readonly accepting: Uint8Array;
  /** Edges of state q are edgeStart[q] up to edgeStart[q + 1]; so with calls. */
  readonly edgeStart: Int32Array;
  readonly edgeLow: Uint8Array;
  readonly edgeHigh: Uint8Array;
  readonly edgeTarget: Int32Array;
  readonly callStart: Int32Array;
  readonly callRule: Int32Array;
  readonly callReturn: Int32Array;
}

/** Builds something from a state on and returns the state at its end. */
export type Part = (from: number) => number;

interface Edge {
  readonly low: number;
  readonly high: number;
  readonly target: number;
}

interface Call {
  readonly rule: number;
  readonly target: number;
}

export function refuse(problem: string, message: string): never {
  throw new OperationalError(`constraint.${problem}`, message);
}

export class NetworkBuilder {
  readonly #edges: Edge[][] = [];
  readonly #calls: Call[][] = [];
  readonly #rules: { readonly start: number; readonly end: number }[] = [];

  newState(): number {
    if (this.#edges.length >= STATES_MAX) {
      refuse("size", `the constraint needs more than ${STATES_MAX} states; repeat less in it`);
    }
    this.#calls.push([]);
    return this.#edges.push([]) - 1;
  }

  /** A rule whose content `define` gives later. */
  newRule(): number {
    return this.#rules.push({ start: this.newState(), end: this.newState() }) - 1;
  }

  define(rule: number, part: Part): void {
    const { start, end } = this.#rules[rule]!;
    this.skip(part(start), end);
  }

  edge(from: number, low: number, high: number, target: number): void {
    this.#edges[from]!.push({ low, high, target });
  }

  /** An edge that reads nothing. */
  skip(from: number, target: number): void {
    this.#calls[from]!.push({ rule: NO_RULE, target });
  }

  call(from: number, rule: number): number {
    const target = this.newState();
    this.#calls[from]!.push({ rule, target });
    return target;
  }

  bytes(from: number, bytes: Uint8Array): number {
    let state = from;
    for (const byte of bytes) {
      const next = this.newState();
      this.edge(state, byte, byte, next);
      state = next;
    }
    return state;
  }

  text(from: number, text: string): number {
    return this.bytes(from, new TextEncoder().encode(text));
  }

  choice(from: number, parts: readonly Part[]): number {
    const end = this.newState();
    for (const part of parts) this.skip(part(from), end);
    return end;
  }

  /** From `least` to `most` times, which may be Infinity. */
  repeat(from: number, least: number, most: number, part: Part): number {
    const copies = most === Number.POSITIVE_INFINITY ? least : most;
    if (copies > REPETITIONS_MAX) {
      refuse("size", `a repetition of ${copies} times is too much; at most ${REPETITIONS_MAX}`);
    }
    const end = this.newState();
    let state = from;
    for (let count = 0; count < copies; count++) {
      if (count >= least) this.skip(state, end);
      // A state of its own, so that a loop inside does not lead back here.
      const start = this.newState();
      this.skip(state, start);
      state = part(start);
    }
    if (most === Number.POSITIVE_INFINITY) {
      const loop = this.newState();
      this.skip(state, loop);
      this.skip(part(loop), loop);
      state = loop;
    }
    this.skip(state, end);
    return end;
  }

  finish(): Network {
    const accepting = new Uint8Array(this.#edges.length);
    for (const { end } of this.#rules) accepting[end] = 1;
    this.#removeUnfinishable(accepting);
    this.#refuseLeftRecursion(this.#nullableRules());
    const edges = this.#edges.flat();
    const calls = this.#calls.flat();
    return {
      ruleStart: Int32Array.from(this.#rules, ({ start }) => start),
      accepting,
      edgeStart: offsets(this.#edges),
      edgeLow: Uint8Array.from(edges, ({ low }) => low),
      edgeHigh: Uint8Array.from(edges, ({ high }) => high),
      edgeTarget: Int32Array.from(edges, ({ target }) => target),
      callStart: offsets(this.#calls),
      callRule: Int32Array.from(calls, ({ rule }) => rule),
      callReturn: Int32Array.from(calls, ({ target }) => target),
    };
  }

  /** Keep only what leads from a state to the end of its rule. */
  #removeUnfinishable(accepting: Uint8Array): void {
    const finishable = this.#closeBackwards(accepting, this.#edges);
    const isFinishable = (call: Call): boolean =>
      finishable[call.target] === 1 && this.#isRuleIn(call.rule, finishable);
    for (let state = 0; state < this.#edges.length; state++) {
      this.#edges[state] = this.#edges[state]!.filter(({ target }) => finishable[target] === 1);
      this.#calls[state] = this.#calls[state]!.filter(isFinishable);
    }
    if (finishable[this.#rules[0]!.start] === 0) {
      refuse("unsatisfiable", "no finite text satisfies the constraint; look for a contradiction");
    }
  }

  #isRuleIn(rule: number, states: Uint8Array): boolean {
    return rule === NO_RULE || states[this.#rules[rule]!.start] === 1;
  }

  /** States from which an accepting one is reached by calls and those edges. */
  #closeBackwards(accepting: Uint8Array, edges: readonly (readonly Edge[])[]): Uint8Array {
    const reached = accepting.slice();
    const before: number[][] = this.#edges.map(() => []);
    for (let state = 0; state < edges.length; state++) {
      for (const { target } of edges[state]!) before[target]!.push(state);
      for (const { rule, target } of this.#calls[state]!) {
        before[target]!.push(state);
        if (rule !== NO_RULE) before[this.#rules[rule]!.start]!.push(state);
      }
    }
    const queue = [...reached.keys()].filter((state) => reached[state] === 1);
    for (let state = queue.pop(); state !== undefined; state = queue.pop()) {
      for (const earlier of before[state]!) {
        if (reached[earlier] === 1) continue;
        const leads =
          edges[earlier]!.some(({ target }) => reached[target] === 1) ||
          this.#calls[earlier]!.some(
            ({ rule, target }) => reached[target] === 1 && this.#isRuleIn(rule, reached),
          );
        if (!leads) continue;
        reached[earlier] = 1;
        queue.push(earlier);
      }
    }
    return reached;
  }

  /** By state: whether its rule can end there without reading anything. */
  #nullableRules(): Uint8Array {
    const accepting = new Uint8Array(this.#edges.length);
    for (const { end } of this.#rules) accepting[end] = 1;
    return this.#closeBackwards(
      accepting,
      this.#edges.map(() => []),
    );
  }

  #refuseLeftRecursion(nullable: Uint8Array): void {
    const marks = new Uint8Array(this.#rules.length);
    // Depth first without recursion: a rule is left when its callees are done.
    for (let first = 0; first < marks.length; first++) {
      const path: { rule: number; callees: number[] }[] = [];
      const enter = (rule: number): void => {
        if (marks[rule] === 1) {
          refuse("recursion", "the constraint refers to itself before any text is read");
        }
        if (marks[rule] === 2) return;
        marks[rule] = 1;
        path.push({ rule, callees: this.#calleesAtStart(rule, nullable) });
      };
      enter(first);
      for (let top = path.at(-1); top !== undefined; top = path.at(-1)) {
        const callee = top.callees.pop();
        if (callee !== undefined) enter(callee);
        else marks[path.pop()!.rule] = 2;
      }
    }
  }

  /** Rules that a rule may call before it has read anything. */
  #calleesAtStart(rule: number, nullable: Uint8Array): number[] {
    const callees = new Set<number>();
    const seen = new Set<number>();
    const queue = [this.#rules[rule]!.start];
    for (let state = queue.pop(); state !== undefined; state = queue.pop()) {
      if (seen.has(state)) continue;
      seen.add(state);
      for (const call of this.#calls[state]!) {
        if (call.rule !== NO_RULE) callees.add(call.rule);
        if (this.#isRuleIn(call.rule, nullable)) queue.push(call.target);
      }
    }
    return [...callees];
  }
}

function offsets(lists: readonly (readonly unknown[])[]): Int32Array {
  const starts = new Int32Array(lists.length + 1);
  for (let i = 0; i < lists.length; i++) starts[i + 1] = starts[i]! + lists[i]!.length;
  return starts;
}
