/**
 * @file What clients ask in benchmarks, from a seed: the same requests on every run.
 *
 *   chat     lengths as in collections of conversations with assistants: log-normal, many short
 *            and few long, about 160 tokens in and 130 out on average; no two prompts alike
 *   system   the same lengths after one of four system prompts of 512 tokens
 *   agent    sessions of six turns, each prompt the one before and 64 to 512 tokens more
 *
 * Tokens are random: what they are changes neither the cost of reading nor that of writing.
 */
import { Random } from "../../../base/random.ts";
import type { Asked } from "./completion-client.ts";

export type Workload = "chat" | "system" | "agent";

const SYSTEM_PROMPTS = 4;
const SYSTEM_TOKENS = 512;
const AGENT_TURNS = 6;
/** Ids below this are special tokens and single bytes, which text seldom is made of. */
const FIRST_ID = 300;

export class Requests {
  readonly #random: Random;
  readonly #vocabSize: number;
  readonly #workload: Workload;
  readonly #systems: readonly (readonly number[])[];
  #session: number[] = [];
  #turns = 0;
  #count = 0;

  /** Requests of one client; `client` tells clients of the same seed apart. */
  constructor(workload: Workload, vocabSize: number, seed: number, client: number) {
    this.#workload = workload;
    this.#vocabSize = vocabSize;
    const shared = new Random(seed, "system prompts");
    this.#systems = Array.from({ length: SYSTEM_PROMPTS }, () =>
      randomPrompt(shared, vocabSize, SYSTEM_TOKENS),
    );
    this.#random = new Random(seed, `${workload} ${client}`);
  }

  next(): Asked {
    const seed = this.#count++;
    if (this.#workload === "agent") return { ...this.#nextTurn(), seed };
    const system =
      this.#workload === "system" ? this.#systems[this.#random.below(SYSTEM_PROMPTS)]! : [];
    const own = randomPrompt(this.#random, this.#vocabSize, this.#length(90, 1.1, 4, 1024));
    return { prompt: [...system, ...own], maxTokens: this.#length(95, 0.8, 8, 512), seed };
  }

  #nextTurn(): Omit<Asked, "seed"> {
    if (this.#turns++ % AGENT_TURNS === 0) this.#session = [];
    const added = randomPrompt(this.#random, this.#vocabSize, 64 + this.#random.below(449));
    this.#session = [...this.#session, ...added];
    return { prompt: this.#session, maxTokens: 32 + this.#random.below(97) };
  }

  #length(median: number, sigma: number, least: number, most: number): number {
    const drawn = Math.round(median * Math.exp(sigma * this.#random.normal()));
    return Math.max(least, Math.min(most, drawn));
  }
}

/** A prompt of so many tokens. */
export function randomPrompt(random: Random, vocabSize: number, length: number): number[] {
  return Array.from({ length }, () => FIRST_ID + random.below(vocabSize - FIRST_ID));
}
