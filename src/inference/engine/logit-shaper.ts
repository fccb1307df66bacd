/**
 * @file What a request does to the logits before a token is chosen: biases, penalties on what was
 * generated before, and the tokens that its constraint or the healing of its prompt allows.
 *
 *     logit[t] + bias[t] − presence·[n_t > 0] − frequency·n_t        n_t: times t was generated
 *
 * Tokens that are not allowed get −∞. The model's own logits are left as they are. The formula is
 * OpenAI's.
 */
import { OperationalError } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { ConstraintState } from "../constraint/constraint.ts";
import { HealingState } from "../healing.ts";
import type { EngineRequest, LogitAdjustments } from "./api.ts";

export class LogitShaper {
  readonly #adjustments: LogitAdjustments | null;
  readonly #constraint: ConstraintState | null;
  readonly #healing: HealingState | null;
  readonly #tokenizer: Tokenizer;
  readonly #counts = new Map<number, number>();

  constructor(
    { adjustments, healing }: Pick<EngineRequest, "adjustments" | "healing">,
    constraint: ConstraintState | null,
    tokenizer: Tokenizer,
  ) {
    if (adjustments !== null) checkAdjustments(adjustments, tokenizer.vocabSize);
    this.#adjustments = adjustments;
    this.#tokenizer = tokenizer;
    this.#constraint = constraint;
    this.#healing = healing ? new HealingState(tokenizer, healing) : null;
  }

  /** A copy that goes its own way; null while the prompt is healed. */
  fork(): LogitShaper | null {
    if (this.#healing !== null && !this.#healing.isDone) return null;
    const constraint = this.#constraint?.fork() ?? null;
    const copy = new LogitShaper({ adjustments: this.#adjustments }, constraint, this.#tokenizer);
    for (const [token, count] of this.#counts) copy.#counts.set(token, count);
    return copy;
  }

  /** Whether the constraint allows nothing but the end. */
  get isComplete(): boolean {
    return this.#constraint?.isFinal ?? false;
  }

  /** The logits to choose from; `logits` themselves if nothing shapes them. */
  shape(logits: Float32Array): Float32Array {
    const heals = this.#healing !== null && !this.#healing.isDone;
    if (this.#adjustments === null && this.#constraint === null && !heals) return logits;
    const shaped = logits.slice();
    if (this.#adjustments !== null) this.#adjust(shaped, this.#adjustments);
    if (this.#constraint !== null) maskOut(shaped, this.#constraint);
    if (heals) this.#healing.maskOut(shaped);
    return shaped;
  }

  /**
   * Count a chosen token; returns how many of its bytes, the first ones, repeat the prompt's end.
   */
  accept(token: number, numBytes: number): number {
    const repeated = this.#healing?.accept(token) ?? 0;
    if (this.#adjustments !== null && (repeated === 0 || repeated < numBytes)) {
      this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
    }
    this.#constraint?.accept(token);
    return repeated;
  }

  #adjust(logits: Float32Array, adjustments: LogitAdjustments): void {
    const { bias, presencePenalty, frequencyPenalty } = adjustments;
    for (const [token, value] of bias) logits[token]! += value;
    if (presencePenalty === 0 && frequencyPenalty === 0) return;
    for (const [token, count] of this.#counts) {
      logits[token]! -= presencePenalty + frequencyPenalty * count;
    }
  }
}

function maskOut(logits: Float32Array, constraint: ConstraintState): void {
  const mask = new Uint32Array((logits.length + 31) >>> 5);
  constraint.mask(mask);
  for (let token = 0; token < logits.length; token++) {
    const isAllowed = (mask[token >>> 5]! >>> (token & 31)) & 1;
    if (isAllowed === 0) logits[token] = Number.NEGATIVE_INFINITY;
  }
}

function checkAdjustments(adjustments: LogitAdjustments, vocabSize: number): void {
  const { bias, presencePenalty, frequencyPenalty } = adjustments;
  for (const [token, value] of bias) {
    const isGood = isIntegerIn(token, 0, vocabSize - 1) && value >= -100 && value <= 100;
    if (!isGood) {
      throw new OperationalError(
        "inference.sampling",
        `bias ${value} of token ${token}: tokens are 0 to ${vocabSize - 1}, biases −100 to 100`,
      );
    }
  }
  for (const [name, value] of Object.entries({ presencePenalty, frequencyPenalty })) {
    if (!(value >= -2 && value <= 2)) {
      throw new OperationalError("inference.sampling", `${name} (${value}) must be from −2 to 2`);
    }
  }
}
