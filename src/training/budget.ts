/**
 * @file How long a run is: the batch ramp, and the plan that turns a budget into a number of steps.
 *
 * Everything a step depends on besides the data (learning rate, loss weights, bias speed) is a
 * function of its number and of its progress, and progress needs the run's length. A budget in
 * steps or tokens gives it at once. A budget in minutes gives it only after the speed of this
 * machine has been seen: until then progress counts as 0, which every schedule answers with its
 * opening value; then the length is fixed once, written to the run folder and followed to the step,
 * so that a resumed run repeats the same numbers and never asks the clock again. A run that is
 * given more minutes than it had plans them by the speed it had, so that its schedule goes on where
 * it was instead of opening anew.
 */
import { counted } from "../base/counted.ts";
import { assert } from "../base/errors.ts";

/**
 * Sequences in a batch: `from` at the start, rising linearly to `sequences` over the first
 * `rampTokens` tokens.
 */
export interface BatchRamp {
  readonly sequences: number;
  readonly rampFrom: number;
  readonly rampTokens: number;
  /** A batch is a whole number of micro-batches of this many sequences. */
  readonly microBatch: number;
  /** And of this many micro-batches: schedules of pipelines want even numbers, or whole rounds. */
  readonly multiple: number;
}

/** Exactly one field; what the user asked for. */
export type Budget =
  | { readonly steps: number }
  | { readonly tokens: number }
  | { readonly minutes: number };

/** "5 minutes", "1 step". */
export function describeBudget(budget: Budget): string {
  if ("steps" in budget) return counted(budget.steps, "step");
  return "tokens" in budget ? counted(budget.tokens, "token") : counted(budget.minutes, "minute");
}

/** The length of a run, once it is known. */
export interface RunPlan {
  /** Steps before this one were taken without a plan, at progress 0. */
  readonly fixedAtStep: number;
  readonly totalSteps: number;
  readonly totalTokens: number;
}

/** Sequences of the step before which `tokens` were consumed: whole micro-batches, at least one. */
export function sequencesAt(ramp: BatchRamp, tokens: number): number {
  const share = ramp.rampTokens > 0 ? Math.min(1, tokens / ramp.rampTokens) : 1;
  const wanted = ramp.rampFrom + (ramp.sequences - ramp.rampFrom) * share;
  const unit = ramp.microBatch * ramp.multiple;
  return Math.max(1, Math.floor(wanted / unit)) * unit;
}

/** Where a run stands: steps taken and tokens consumed by them. */
export interface Position {
  readonly step: number;
  readonly tokens: number;
}

/**
 * The plan of a run from `position` until `limit` steps are taken, or until at least `limit` tokens
 * are consumed.
 */
export function planFrom(
  position: Position,
  limit: { readonly steps: number } | { readonly tokens: number },
  ramp: BatchRamp,
  sequenceLength: number,
): RunPlan {
  let { step, tokens } = position;
  const isBelow = (): boolean => ("steps" in limit ? step < limit.steps : tokens < limit.tokens);
  const limitValue = "steps" in limit ? limit.steps : limit.tokens;
  assert(Number.isFinite(limitValue), `a plan needs a finite limit, not ${limitValue}`);
  while (isBelow()) {
    tokens += sequencesAt(ramp, tokens) * sequenceLength;
    step++;
  }
  return { fixedAtStep: position.step, totalSteps: step, totalTokens: tokens };
}

/** The share of the run that lies before `position`; 0 while, or where, there was no plan. */
export function progressAt(plan: RunPlan | undefined, position: Position): number {
  if (plan === undefined || position.step < plan.fixedAtStep || plan.totalTokens === 0) return 0;
  return Math.min(1, position.tokens / plan.totalTokens);
}

/**
 * Steps whose duration says nothing: kernels are generated and memory is touched for the first
 * time.
 */
const COLD_STEPS = 2;
const MEASURED_STEPS = 4;
/**
 * The speed counts as known after a minute, or after a twentieth of the budget if that is longer;
 * of a short budget, after a fifth. Chosen by feel: other programs come and go within seconds.
 */
function measuredSeconds(budgetSeconds: number): number {
  return Math.min(budgetSeconds / 5, Math.max(60, budgetSeconds / 20));
}

/** Share of the budget kept for the last evaluation and checkpoint. */
const RESERVED_SHARE = 0.05;

/** Watches the first steps of a run with a budget in minutes until its length can be fixed. */
export class SpeedWatch {
  readonly #budgetSeconds: number;
  #steps = 0;
  #warmSeconds = 0;
  #warmTokens = 0;
  /** The speed needs no watching: earlier sessions of the run had it. */
  readonly #isKnown: boolean;

  /** `earlier`: what the run's earlier sessions took, if it had any. */
  constructor(minutes: number, earlier: { readonly seconds: number; readonly tokens: number }) {
    this.#budgetSeconds = minutes * 60;
    this.#isKnown = earlier.tokens > 0 && earlier.seconds > 0;
    if (!this.#isKnown) return;
    this.#warmSeconds = earlier.seconds;
    this.#warmTokens = earlier.tokens;
  }

  /** Count a finished step. */
  observe(seconds: number, tokens: number): void {
    this.#steps++;
    if (this.#steps <= COLD_STEPS) return;
    this.#warmSeconds += seconds;
    this.#warmTokens += tokens;
  }

  /**
   * Tokens until the end of the budget, `elapsedSeconds` after the start; undefined while it is too
   * early to say.
   */
  tokensLeft(elapsedSeconds: number): number | undefined {
    const measured =
      this.#steps >= COLD_STEPS + MEASURED_STEPS &&
      elapsedSeconds >= measuredSeconds(this.#budgetSeconds);
    if (!this.#isKnown && !measured && elapsedSeconds < this.#budgetSeconds) return undefined;
    const left = this.#budgetSeconds * (1 - RESERVED_SHARE) - elapsedSeconds;
    if (left <= 0 || this.#warmSeconds === 0) return 0;
    return Math.floor((left * this.#warmTokens) / this.#warmSeconds);
  }
}
