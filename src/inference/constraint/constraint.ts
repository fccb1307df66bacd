/**
 * @file Which tokens may come next, so that a generated text satisfies a constraint.
 *
 * A mask is exact: with the tokens it allows, and no others, the text can still be completed. It
 * allows the end token when the text is complete, and added tokens never.
 *
 * The text read so far is a set of threads, usually one: a situation of the automaton within the
 * innermost rule, and the returns of the calls around it. A state is cheap to copy (`fork`), for
 * drafted tokens that may have to be taken back.
 */
import { assert } from "../../base/errors.ts";
import { Automaton } from "./automaton.ts";
import { type Network, refuse } from "./network.ts";
import type { TokenTrie } from "./token-trie.ts";

const THREADS_MAX = 500;

/** A return that waits, and those around it; null at the bottom. */
interface Frame {
  readonly returnState: number;
  readonly outer: Frame | null;
  /** Frames within, by return state: equal stacks are the same object. */
  readonly inner: Map<number, Frame>;
}

interface Thread {
  /** States of the innermost rule that read bytes. */
  readonly states: readonly number[];
  readonly frame: Frame | null;
}

/** A network with a vocabulary; shared by all requests that have the same of both. */
export class Constraint {
  readonly #automaton: Automaton;

  constructor(network: Network, trie: TokenTrie) {
    this.#automaton = new Automaton(network, trie);
  }

  /** About how many bytes it holds now. */
  get heldBytes(): number {
    return this.#automaton.heldBytes;
  }

  /** A text of which nothing is read yet. `endToken` ends a complete one. */
  start(endToken: number): ConstraintState {
    return ConstraintState.begin(this.#automaton, endToken);
  }
}

export class ConstraintState {
  readonly #automaton: Automaton;
  readonly #endToken: number;
  readonly #bottom: Map<number, Frame>;
  #threads: readonly Thread[] = [];
  #isComplete = false;
  #hasEnded = false;

  private constructor(automaton: Automaton, endToken: number, bottom: Map<number, Frame>) {
    this.#automaton = automaton;
    this.#endToken = endToken;
    this.#bottom = bottom;
  }

  static begin(automaton: Automaton, endToken: number): ConstraintState {
    const state = new ConstraintState(automaton, endToken, new Map());
    automaton.begin();
    state.#settle(new Positions(automaton, automaton.at(automaton.network.ruleStart[0]!)));
    return state;
  }

  /** Whether the text satisfies the constraint as it is. */
  get isComplete(): boolean {
    return this.#isComplete;
  }

  /** Whether the text is complete and nothing can follow, or the end token was accepted. */
  get isFinal(): boolean {
    return this.#threads.length === 0;
  }

  fork(): ConstraintState {
    const copy = new ConstraintState(this.#automaton, this.#endToken, this.#bottom);
    copy.#threads = this.#threads;
    copy.#isComplete = this.#isComplete;
    copy.#hasEnded = this.#hasEnded;
    return copy;
  }

  /** Set bit t of `out` (t & 31 of word t >> 5) for every token t that may come, and no other. */
  mask(out: Uint32Array): void {
    const automaton = this.#automaton;
    const { vocabSize } = automaton.trie;
    assert(out.length === (vocabSize + 31) >>> 5, `mask of ${out.length} words`);
    automaton.begin();
    out.fill(0);
    for (const { states, frame } of this.#threads) {
      let admitted = automaton.admit(automaton.atStates(states));
      addBits(out, admitted.bits);
      for (let at = frame; at !== null && admitted.endNodes.length > 0; at = at.outer) {
        admitted = automaton.admitBeyond(admitted, automaton.at(at.returnState));
        addBits(out, admitted.bits);
      }
    }
    const end = this.#endToken;
    if (this.#isComplete && !this.#hasEnded) out[end >>> 5]! |= 1 << (end & 31);
  }

  /** Whether a token may come. */
  allows(token: number): boolean {
    if (token === this.#endToken) return this.#isComplete && !this.#hasEnded;
    return this.#read(token) !== null;
  }

  /** Read a token that is allowed. */
  accept(token: number): void {
    if (token === this.#endToken) {
      assert(this.#isComplete && !this.#hasEnded, "the end token came before the text's end");
      this.#threads = [];
      this.#hasEnded = true;
      return;
    }
    const positions = this.#read(token);
    assert(positions !== null, `token ${token} is not allowed here`);
    this.#settle(positions);
  }

  /** Where the threads are after a token; null when none is left. */
  #read(token: number): Positions | null {
    const automaton = this.#automaton;
    const bytes = automaton.trie.tokenBytes(token);
    if (this.#hasEnded || bytes === undefined || bytes.length === 0) return null;
    automaton.begin();
    let positions = new Positions(automaton);
    for (const { states, frame } of this.#threads) {
      positions.add(automaton.atStates(states), frame);
    }
    for (const byte of bytes) {
      positions = positions.step(byte);
      if (positions.isDead) return null;
    }
    return positions;
  }

  /** Bring the calls that situations have entered into frames. */
  #settle(positions: Positions): void {
    const statesOfFrame = new Map<Frame | null, Set<number>>();
    for (const [frame, situations] of positions.byFrame) {
      for (const situation of situations) {
        for (const { state, returns } of this.#automaton.entered(situation)) {
          let inner = frame;
          for (const returnState of returns) inner = this.#frameWithin(inner, returnState);
          const states = statesOfFrame.get(inner);
          if (states === undefined) statesOfFrame.set(inner, new Set([state]));
          else states.add(state);
        }
      }
    }
    if (statesOfFrame.size > THREADS_MAX) {
      refuse(
        "ambiguous",
        "the text can be read in too many ways; make alternatives differ earlier",
      );
    }
    this.#threads = [...statesOfFrame].map(([frame, states]) => ({ frame, states: [...states] }));
    this.#isComplete = positions.isComplete;
  }

  #frameWithin(outer: Frame | null, returnState: number): Frame {
    const siblings = outer === null ? this.#bottom : outer.inner;
    let frame = siblings.get(returnState);
    if (frame === undefined) {
      frame = { returnState, outer, inner: new Map() };
      siblings.set(returnState, frame);
    }
    return frame;
  }
}

/** Where the threads of a text are within a token. */
class Positions {
  readonly byFrame: Map<Frame | null, Set<number>> = new Map();
  isComplete = false;
  readonly #automaton: Automaton;

  constructor(automaton: Automaton, first?: number) {
    this.#automaton = automaton;
    if (first !== undefined) this.add(first, null);
  }

  get isDead(): boolean {
    return this.byFrame.size === 0 && !this.isComplete;
  }

  /** Add a situation, and where its rule returns to when it may end. */
  add(situation: number, frame: Frame | null): void {
    const automaton = this.#automaton;
    let current = situation;
    for (let at = frame; ; at = at.outer) {
      if (automaton.reads(current)) {
        const situations = this.byFrame.get(at);
        if (situations === undefined) this.byFrame.set(at, new Set([current]));
        else situations.add(current);
      }
      if (!automaton.mayEnd(current)) return;
      if (at === null) {
        this.isComplete = true;
        return;
      }
      current = automaton.at(at.returnState);
    }
  }

  step(byte: number): Positions {
    const next = new Positions(this.#automaton);
    for (const [frame, situations] of this.byFrame) {
      for (const situation of situations) {
        next.add(this.#automaton.step(situation, byte), frame);
      }
    }
    return next;
  }
}

function addBits(out: Uint32Array, bits: Uint32Array): void {
  for (let word = 0; word < out.length; word++) out[word]! |= bits[word]!;
}
