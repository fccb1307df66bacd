/**
 * @file Random words by number: word n of a stream follows from its keys and n alone, so that
 * threads may draw in any order and a resumed run draws what an uninterrupted one would.
 *
 *     x = n ^ first·2⁸    x = (x ^ x>>>16)·A    x = ((x ^ x>>>15) + second·2⁸)·B    x ^ x>>>15
 *
 * The multipliers and shifts are those of a published 32-bit mixer (T. Ettinger's, after C.
 * Wellons' search) with one key before and one between its rounds. For rounding and the like; not
 * for secrets. Kernels compute the same words in integer vectors (kernels/adamw/program.ts).
 */
import { Random } from "./random.ts";

/** What a stream is keyed with: 24 bits each, exact in float32. */
export interface CounterKeys {
  readonly first: number;
  readonly second: number;
}

export const COUNTER_MULTIPLIERS = [0x21f0aaad, 0x735a2d97] as const;
export const COUNTER_SHIFTS = [16, 15, 15] as const;
/** Keys stand in the upper bits, where counters do not reach at once. */
export const COUNTER_KEY_SHIFT = 8;

const KEY_END = 2 ** 24;

/** The keys of stream `stream` (such as a step's number) of a seed. */
export function counterKeys(seed: number, stream: number): CounterKeys {
  const random = new Random(seed, `stream ${stream}`);
  return { first: random.below(KEY_END), second: random.below(KEY_END) };
}

/** Word `counter` of a stream, in [0, 2³²); counters below 2³². */
export function counterWord({ first, second }: CounterKeys, counter: number): number {
  const [before, between, after] = COUNTER_SHIFTS;
  const [a, b] = COUNTER_MULTIPLIERS;
  let x = counter ^ (first << COUNTER_KEY_SHIFT);
  x = Math.imul(x ^ (x >>> before), a);
  x = Math.imul((x ^ (x >>> between)) + (second << COUNTER_KEY_SHIFT), b);
  return (x ^ (x >>> after)) >>> 0;
}
