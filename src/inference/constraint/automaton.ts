/**
 * @file A network run over bytes: sets of its states, determinised as they are met, and the tokens
 * each of them admits.
 *
 *     situation   what may come next within the rule being read and those it calls, whatever called
 *                 it: a set of (state, calls entered since), and whether the rule may end here
 *
 * A situation does not know what is below it on the stack, so the one inside a string is the same
 * for every string of a document, however deep. `admit` gives the tokens that can be read in a
 * situation without leaving the rule, and the nodes of the trie at which the rule ends with more of
 * the token to come; `admitBeyond` goes on from those in the situation of whatever called the rule.
 *
 * Situations, their transitions and admitted tokens are kept until they are too many, and then
 * forgotten together. Work is counted; a network so ambiguous that one step costs
 * too much ends with an error and not in a long silence.
 */
import { assert } from "../../base/errors.ts";
import { type Network, NO_RULE, refuse } from "./network.ts";
import type { TokenTrie } from "./token-trie.ts";

const SITUATIONS_MAX = 4096;
const ADMITTED_MAX = 2 ** 21;
/** By feel: a few states, their calls, the map's entry. */
const SITUATION_BYTES = 512;
/** States looked at in one step; about a tenth of a second. */
const WORK_MAX = 5_000_000;

/** Nothing can come and the rule does not end: number 0. */
const DEAD = 0;
/** No calls entered since. */
const BOTTOM = 0;

interface Situation {
  /** States that read bytes, each with the calls entered since. */
  readonly states: readonly number[];
  readonly calls: readonly number[];
  readonly mayEnd: boolean;
  /** By class of bytes; -1 where not asked yet. */
  readonly next: Int32Array;
}

export interface Admitted {
  /** Bit t & 31 of word t >> 5 stands for token t. */
  readonly bits: Uint32Array;
  /** Nodes at which the rule ended and that have descendants. */
  readonly endNodes: Int32Array;
  /** What the callers admit below the end nodes, by their situation. */
  readonly beyond: Map<number, Admitted>;
}

export class Automaton {
  readonly network: Network;
  readonly trie: TokenTrie;
  readonly #numStates: number;
  readonly #classOfByte = new Uint8Array(256);
  readonly #byteOfClass: number[] = [];
  /** States that only lead to the end of their rule: a call need not return to them. */
  readonly #isTail: Uint8Array;
  /** The situations on the way to a node of the trie. */
  readonly #path: Int32Array;
  #situations: Situation[] = [];
  #numberOfKey = new Map<string, number>();
  #situationOfState = new Map<number, number>();
  #admitted = new Map<number, Admitted>();
  #numAdmitted = 0;
  /** Calls entered: where to return to, and the calls before. */
  #callReturn: number[] = [0];
  #callBefore: number[] = [0];
  #callOfKey = new Map<number, number>();
  #work = 0;

  constructor(network: Network, trie: TokenTrie) {
    this.network = network;
    this.trie = trie;
    this.#numStates = network.accepting.length;
    this.#path = new Int32Array(trie.depthMax + 1);
    this.#divideBytes();
    this.#isTail = this.#findTails();
    this.#forget();
  }

  /** About how many bytes what it remembers takes; bounded by what `begin` forgets. */
  get heldBytes(): number {
    return this.#numAdmitted * 4 + this.#situations.length * SITUATION_BYTES;
  }

  /**
   * Begin a step: forget what has become too much, and count its work from 0. Numbers of situations
   * hold until the next step begins.
   */
  begin(): void {
    this.#work = 0;
    if (this.#situations.length > SITUATIONS_MAX || this.#numAdmitted > ADMITTED_MAX) {
      this.#forget();
    }
  }

  mayEnd(situation: number): boolean {
    return this.#situations[situation]!.mayEnd;
  }

  reads(situation: number): boolean {
    return this.#situations[situation]!.states.length > 0;
  }

  /** The situation at a state, nothing known of what is below. */
  at(state: number): number {
    let situation = this.#situationOfState.get(state);
    if (situation === undefined) {
      situation = this.#close([state], [BOTTOM]);
      this.#situationOfState.set(state, situation);
    }
    return situation;
  }

  /** The situation of several states that read bytes. */
  atStates(states: readonly number[]): number {
    return this.#intern(
      states,
      states.map(() => BOTTOM),
      false,
    );
  }

  /** The situation after a byte. */
  step(situation: number, byte: number): number {
    return this.#stepClass(situation, this.#classOfByte[byte]!);
  }

  /** The states that read bytes, each with the returns of the calls entered, the last one last. */
  *entered(situation: number): Generator<{ state: number; returns: number[] }> {
    const { states, calls } = this.#situations[situation]!;
    for (const [i, state] of states.entries()) {
      const returns: number[] = [];
      for (let call = calls[i]!; call !== BOTTOM; call = this.#callBefore[call]!) {
        returns.push(this.#callReturn[call]!);
      }
      yield { state, returns: returns.reverse() };
    }
  }

  /** What a situation admits. */
  admit(situation: number): Admitted {
    let admitted = this.#admitted.get(situation);
    if (admitted === undefined) {
      admitted = this.#admitBelow(situation, [0], []);
      this.#admitted.set(situation, admitted);
    }
    return admitted;
  }

  /** What the caller's situation admits of tokens in which the rule within has ended. */
  admitBeyond(within: Admitted, situation: number): Admitted {
    let admitted = within.beyond.get(situation);
    if (admitted === undefined) {
      const { endNodes } = within;
      admitted = this.#admitBelow(situation, endNodes, this.mayEnd(situation) ? endNodes : []);
      within.beyond.set(situation, admitted);
    }
    return admitted;
  }

  #admitBelow(situation: number, nodes: Iterable<number>, ended: Iterable<number>): Admitted {
    const bits = new Uint32Array((this.trie.vocabSize + 31) >>> 5);
    const endNodes = new Set(ended);
    for (const node of nodes) this.#walk(situation, node, { bits, endNodes });
    this.#numAdmitted += bits.length + endNodes.size + 8;
    return { bits, endNodes: Int32Array.from(endNodes), beyond: new Map() };
  }

  #walk(
    situation: number,
    node: number,
    found: { readonly bits: Uint32Array; readonly endNodes: Set<number> },
  ): void {
    const { byte, depth, end, tokenStart, tokens } = this.trie;
    const path = this.#path;
    path[0] = situation;
    const top = depth[node]!;
    for (let i = node + 1; i < end[node]!; ) {
      const level = depth[i]! - top;
      const next = this.#stepClass(path[level - 1]!, this.#classOfByte[byte[i]!]!);
      if (next === DEAD) {
        i = end[i]!;
        continue;
      }
      for (let t = tokenStart[i]!; t < tokenStart[i + 1]!; t++) {
        const token = tokens[t]!;
        found.bits[token >>> 5]! |= 1 << (token & 31);
      }
      const { mayEnd, states } = this.#situations[next]!;
      if (mayEnd && end[i]! > i + 1) found.endNodes.add(i);
      path[level] = next;
      i = states.length > 0 ? i + 1 : end[i]!;
    }
  }

  #stepClass(situation: number, byteClass: number): number {
    const { next, states, calls } = this.#situations[situation]!;
    const known = next[byteClass]!;
    if (known >= 0) return known;
    const { edgeStart, edgeLow, edgeHigh, edgeTarget } = this.network;
    const byte = this.#byteOfClass[byteClass]!;
    const targets: number[] = [];
    const targetCalls: number[] = [];
    for (let i = 0; i < states.length; i++) {
      const state = states[i]!;
      this.#count(edgeStart[state + 1]! - edgeStart[state]!);
      for (let edge = edgeStart[state]!; edge < edgeStart[state + 1]!; edge++) {
        if (byte < edgeLow[edge]! || byte > edgeHigh[edge]!) continue;
        targets.push(edgeTarget[edge]!);
        targetCalls.push(calls[i]!);
      }
    }
    const result = targets.length === 0 ? DEAD : this.#close(targets, targetCalls);
    next[byteClass] = result;
    return result;
  }

  /** Follow calls, returns and edges that read nothing. Takes its arguments over. */
  #close(states: number[], calls: number[]): number {
    const { accepting, edgeStart, callStart, callRule, callReturn, ruleStart } = this.network;
    const seen = new Set<number>();
    const reading: number[] = [];
    const readingCalls: number[] = [];
    let mayEnd = false;
    while (states.length > 0) {
      const state = states.pop()!;
      const call = calls.pop()!;
      const key = call * this.#numStates + state;
      if (seen.has(key)) continue;
      seen.add(key);
      this.#count(1 + callStart[state + 1]! - callStart[state]!);
      if (accepting[state] === 1) {
        if (call === BOTTOM) mayEnd = true;
        else {
          states.push(this.#callReturn[call]!);
          calls.push(this.#callBefore[call]!);
        }
      }
      if (edgeStart[state] !== edgeStart[state + 1]) {
        reading.push(state);
        readingCalls.push(call);
      }
      for (let i = callStart[state]!; i < callStart[state + 1]!; i++) {
        const rule = callRule[i]!;
        const target = callReturn[i]!;
        states.push(rule === NO_RULE ? target : ruleStart[rule]!);
        const isKept = rule === NO_RULE || this.#isTail[target] === 1;
        calls.push(isKept ? call : this.#enter(call, target));
      }
    }
    return this.#intern(reading, readingCalls, mayEnd);
  }

  #enter(before: number, target: number): number {
    const key = before * this.#numStates + target;
    let call = this.#callOfKey.get(key);
    if (call === undefined) {
      call = this.#callReturn.push(target) - 1;
      this.#callBefore.push(before);
      this.#callOfKey.set(key, call);
    }
    return call;
  }

  #intern(states: readonly number[], calls: readonly number[], mayEnd: boolean): number {
    const order = [...states.keys()].sort(
      (a, b) => calls[a]! - calls[b]! || states[a]! - states[b]!,
    );
    const key = `${mayEnd} ${order.map((i) => `${calls[i]},${states[i]}`).join(" ")}`;
    const known = this.#numberOfKey.get(key);
    if (known !== undefined) return known;
    const next = new Int32Array(this.#byteOfClass.length).fill(-1);
    this.#count(next.length);
    const number = this.#situations.push({
      states: order.map((i) => states[i]!),
      calls: order.map((i) => calls[i]!),
      mayEnd,
      next,
    });
    this.#numberOfKey.set(key, number - 1);
    return number - 1;
  }

  #count(work: number): void {
    this.#work += work;
    if (this.#work > WORK_MAX) {
      refuse("ambiguous", "the constraint is too ambiguous to be followed; simplify it");
    }
  }

  #forget(): void {
    this.#situations = [];
    this.#numberOfKey = new Map();
    this.#situationOfState = new Map();
    this.#admitted = new Map();
    this.#numAdmitted = 0;
    this.#callReturn = [0];
    this.#callBefore = [0];
    this.#callOfKey = new Map();
    assert(this.#intern([], [], false) === DEAD, "the first situation is the dead one");
  }

  /** Bytes that no edge tells apart form a class. */
  #divideBytes(): void {
    const isFirst = new Uint8Array(257);
    for (const low of this.network.edgeLow) isFirst[low] = 1;
    for (const high of this.network.edgeHigh) isFirst[high + 1] = 1;
    isFirst[0] = 1;
    for (let byte = 0; byte < 256; byte++) {
      if (isFirst[byte] === 1) this.#byteOfClass.push(byte);
      this.#classOfByte[byte] = this.#byteOfClass.length - 1;
    }
  }

  #findTails(): Uint8Array {
    const { accepting, edgeStart, callStart, callRule, callReturn } = this.network;
    const tails = accepting.slice();
    for (let changed = true; changed; ) {
      changed = false;
      for (let state = this.#numStates - 1; state >= 0; state--) {
        const first = callStart[state]!;
        const isLink =
          tails[state] === 0 &&
          edgeStart[state] === edgeStart[state + 1] &&
          callStart[state + 1] === first + 1 &&
          callRule[first] === NO_RULE &&
          tails[callReturn[first]!] === 1;
        if (!isLink) continue;
        tails[state] = 1;
        changed = true;
      }
    }
    return tails;
  }
}
