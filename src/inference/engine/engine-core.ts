/**
 * @file One step of an engine over its sequences.
 *
 *     step = end what is over · plan (scheduler.ts) · preempt, admit · one pass over all · choose
 *            tokens · one MTP pass that drafts the next · hand finished prefixes to the cache
 *
 * A request that fails (logits that are not numbers, a constraint that cannot go on) fails alone.
 * Which requests share a step, what is cached and what is drafted change no token.
 */
import { assert, defined, OperationalError } from "../../base/errors.ts";
import { view } from "../../tensor/view.ts";
import type { Decoder, PassResult } from "../decoder.ts";
import type { DraftFeed } from "../draft-pass.ts";
import type { DiskTier } from "../prefix-cache/disk/disk-tier.ts";
import type { EngineMetric, FinishReason, PrefixReader } from "./api.ts";
import { DRAFTS_MAX, type DraftPolicy } from "./draft-policy.ts";
import { FairShares } from "./fair-shares.ts";
import { KeptPrefixes } from "./kept-prefixes.ts";
import { EngineCounts, loadMetrics } from "./metrics.ts";
import { PrefillPace } from "./prefill-pace.ts";
import { type PlannedRun, planStep, type SchedulePlan, tenantsAsking } from "./scheduler.ts";
import type { Sequence } from "./sequence.ts";

export interface StepOptions {
  /** Tokens of one step: the longest a stream waits for a prompt of somebody else. */
  readonly stepTokens?: number;
  readonly runningMax?: number;
  /** Whether prefixes are kept; true if left out. */
  readonly keepsPrefixes?: boolean;
  /** Where prefixes outlive the engine; nowhere if left out. Closed by who opened it. */
  readonly disk?: DiskTier;
  /** Reads prompts in this engine's place; the engine itself if left out. */
  readonly reader?: PrefixReader;
  /** Whether sequences draft while it pays, always or never; the last two are for tests. */
  readonly drafting?: "auto" | "always" | "never";
  /** Whether prompts are read as fast as they can be, whoever decodes beside them; for tests. */
  readonly readsAtOnce?: boolean;
}

/** By feel: products are at their speed. */
const STEP_TOKENS = 256;
const RUNNING_MAX = 64;
/** Drafts of a sequence before it stops because they do not pay: enough for a probe to tell. */
const DRAFTS_TRIED = 16;

/** A sequence in a step: its row in the pass and what of it was fed. */
interface Run {
  readonly sequence: Sequence;
  readonly firstRow: number;
  readonly position: number;
  readonly tokens: Int32Array;
  readonly logits: "none" | "last" | "all";
}

/** What the MTP module reads of a sequence. */
type Feeding = DraftFeed & { readonly sequence: Sequence };

/** Before a pass: which of its tokens are of streams, and how many drafts each of these has. */
function countRuns(runs: readonly Run[]) {
  const prompts = runs.filter(({ sequence }) => !sequence.isDecoding);
  const promptTokens = prompts.reduce((sum, { tokens }) => sum + tokens.length, 0);
  const ofStreams = runs.filter(({ sequence }) => sequence.isDecoding);
  const numDrafts = sameOfAll(ofStreams.map(({ tokens }) => tokens.length - 1));
  return { numStreams: ofStreams.length, promptTokens, numDrafts };
}

/** What all counts are; null if they differ. */
function sameOfAll(counts: readonly number[]): number | null {
  const [first = 0] = counts;
  return counts.every((count) => count === first) ? first : null;
}

export class EngineCore {
  readonly #decoder: Decoder;
  readonly #options: StepOptions;
  readonly #policy: DraftPolicy;
  readonly #pace = new PrefillPace();
  readonly prefixes: KeptPrefixes;
  readonly #counts = new EngineCounts();
  readonly #shares = new FairShares();
  #sequences: Sequence[] = [];
  #nextAdmission = 0;

  constructor(decoder: Decoder, policy: DraftPolicy, options: StepOptions) {
    this.#decoder = decoder;
    this.#policy = policy;
    this.#options = options;
    decoder.blocks.onFree = (milliseconds) =>
      this.#counts.observe("kv_block_lifetime_seconds", milliseconds);
    this.prefixes = new KeptPrefixes({
      blocks: decoder.blocks,
      counts: this.#counts,
      disk: options.disk ?? null,
      reader: options.reader ?? null,
      isOn: options.keepsPrefixes ?? true,
    });
  }

  get numSequences(): number {
    return this.#sequences.length;
  }

  get isIdle(): boolean {
    return this.#sequences.length === 0;
  }

  /** The tenants of requests that wait to be admitted, one for each. */
  get waitingTenants(): readonly string[] {
    return this.#sequences.flatMap(({ admission, tenant }) => (admission === null ? [tenant] : []));
  }

  /** Queue a sequence. */
  enter(sequence: Sequence): void {
    this.#shares.enter(sequence.tenant, tenantsAsking(this.#sequences));
    this.#sequences.push(sequence);
  }

  describe(): readonly EngineMetric[] {
    const { blocks } = this.#decoder;
    const numWaiting = this.waitingTenants.length;
    const counted = this.#counts.describe({
      num_requests_running: this.#sequences.length - numWaiting,
      num_requests_waiting: numWaiting,
      kv_cache_usage_perc: 1 - blocks.numFree / blocks.numBlocks,
    });
    const { layerIndexes } = this.#decoder.expertLoad;
    const loads = this.#decoder.expertLoad.maxOverMean();
    const ofRanks = this.#decoder.describeFollowers();
    const ofLoad = loadMetrics(layerIndexes, loads);
    return [...counted, ...ofLoad, ...ofRanks, ...this.prefixes.describe()];
  }

  /** End everything with a failure. */
  endAll(failure: OperationalError): void {
    for (const sequence of [...this.#sequences]) this.#fail(sequence, failure);
  }

  /** Assert that no block is lost and, when nothing runs, that only prefixes hold any. */
  checkIntegrity(): void {
    const { blocks } = this.#decoder;
    blocks.checkIntegrity();
    this.prefixes.checkIntegrity();
    if (!this.isIdle) return;
    const used = blocks.numBlocks - blocks.numFree;
    assert(used === this.prefixes.numBlocks, `${used} blocks are used by nobody`);
  }

  step(): void {
    this.#endWhatIsOver();
    if (this.#sequences.length === 0) return;
    const plan = this.#plan();
    for (const id of plan.preempt) this.#preempt(this.#byId(id));
    for (const id of plan.admit) this.#admit(this.#byId(id));
    if (plan.run.length === 0) return;
    const start = performance.now();
    const runs = this.#feedsOf(plan.run);
    const { numStreams, promptTokens, numDrafts } = countRuns(runs);
    const { logits, hidden } = this.#decoder.forwardKeeping(
      runs.map(({ sequence, tokens, logits }) => ({ cache: sequence.cache, tokens, logits })),
    );
    for (const run of runs) {
      this.#noteHidden(run, hidden);
      this.#guard(run.sequence, () => this.#take(run, logits[runs.indexOf(run)]!));
    }
    const passed = performance.now();
    this.#draft(runs, hidden);
    const end = performance.now();
    if (promptTokens === 0 && numDrafts !== null) {
      const numNext = sameOfAll(runs.map(({ sequence }) => sequence.draftTokens.length));
      const [passMs, draftMs] = [passed - start, end - passed];
      this.#policy.noteStep({ numStreams, numDrafts, numNext, passMs, draftMs });
    }
    this.#pace.note(numStreams, promptTokens, end - start);
    for (const { sequence } of runs) {
      if (sequence.end !== null) this.#finish(sequence, sequence.end);
    }
  }

  #endWhatIsOver(): void {
    const now = performance.now();
    for (const sequence of [...this.#sequences]) {
      if (sequence.isAborted) this.#finish(sequence, "aborted");
      else if (now >= sequence.deadlineAt) {
        const message = `the deadline of ${sequence.request.deadlineMs} ms passed`;
        this.#fail(sequence, new OperationalError("engine.deadline", message));
      }
    }
  }

  #plan(): SchedulePlan {
    const { blocks } = this.#decoder;
    const { stepTokens = STEP_TOKENS } = this.#options;
    const streams = this.#sequences.filter(({ isDecoding }) => isDecoding);
    const ofStreams = streams.reduce((sum, { numPending }) => sum + numPending, 0);
    const most = streams.length > 0 ? ofStreams + this.#paceOf(streams.length) : stepTokens;
    const wanted = this.#sequences.reduce(
      (sum, sequence) => sum + sequence.countMissing(sequence.numPending),
      0,
    );
    if (wanted > blocks.numFree) this.prefixes.evict(wanted - blocks.numFree);
    return planStep(this.#sequences, {
      stepTokens: Math.min(stepTokens, most),
      runningMax: this.#options.runningMax ?? RUNNING_MAX,
      freeBlocks: blocks.numFree,
      shares: this.#shares,
    });
  }

  /** Prompt tokens beside streams; as many as there is room for if no prompt waits. */
  #paceOf(numStreams: number): number {
    const isPromptWaiting = this.#sequences.some(({ isDecoding }) => !isDecoding);
    if (!isPromptWaiting) return 0;
    const { readsAtOnce, stepTokens = STEP_TOKENS } = this.#options;
    return readsAtOnce === true ? stepTokens : this.#pace.chunk(numStreams);
  }

  #byId(id: number): Sequence {
    return defined(
      this.#sequences.find((sequence) => sequence.id === id),
      `sequence ${id}`,
    );
  }

  #preempt(sequence: Sequence): void {
    this.#counts.add("num_preemptions_total", 1);
    this.#giveBack(sequence);
    sequence.admission = null;
    sequence.dropDrafts();
    sequence.hiddenSum?.fill(0);
  }

  #admit(sequence: Sequence): void {
    sequence.admission = this.#nextAdmission++;
    this.prefixes.adopt(sequence);
  }

  #feedsOf(planned: readonly PlannedRun[]): Run[] {
    let firstRow = 0;
    return planned.map(({ id, numTokens }) => {
      const sequence = this.#byId(id);
      const count = Math.min(numTokens, sequence.numPending);
      const { cache } = sequence;
      this.#reserve(sequence, count);
      const logits = sequence.wantedLogits(count);
      const tokens = sequence.pendingTokens(count);
      const run = { sequence, firstRow, position: cache.length, tokens, logits };
      firstRow += count;
      this.#shares.give(sequence.tenant, count);
      return run;
    });
  }

  /** The plan counted on these blocks; some may still be held by prefixes that nobody reads. */
  #reserve({ cache }: Sequence, count: number): void {
    if (cache.reserve(count)) return;
    this.prefixes.evict(cache.countMissing(count) - this.#decoder.blocks.numFree);
    assert(cache.reserve(count), "the blocks of a plan are there");
  }

  #noteHidden({ sequence, firstRow, tokens }: Run, hidden: PassResult["hidden"]): void {
    const { hiddenSum } = sequence;
    if (hiddenSum === null) return;
    const values = view(hidden);
    const { columns } = hidden;
    for (let row = firstRow; row < firstRow + tokens.length; row++) {
      for (let column = 0; column < columns; column++) {
        hiddenSum[column]! += values[row * columns + column]!;
      }
    }
  }

  /** What a pass gave one sequence: prompt progress, tokens. */
  #take({ sequence, position, tokens, logits: wanted }: Run, logits: Float32Array): void {
    const { cache, request } = sequence;
    const rowLength = this.#decoder.model.config.vocabSize;
    const wasPrompt = position < request.prompt.length;
    // Drafts that were left out of the step are given up.
    const numDrafted = Math.max(0, cache.length - sequence.tokens.length);
    const drafted = sequence.draftTokens.slice(0, numDrafted);
    if (wasPrompt) {
      this.#counts.add("prompt_tokens_total", tokens.length);
      sequence.noteRead(position, wanted === "all" ? logits : null, rowLength);
    }
    if (cache.length < sequence.tokens.length || sequence.end !== null) return;
    if (request.maxTokens === 0) return;
    if (wasPrompt) this.prefixes.keep(sequence);
    const end = logits.length / rowLength;
    const rows = Array.from({ length: numDrafted + 1 }, (_, index) => {
      const row = end - numDrafted - 1 + index;
      return logits.subarray(row * rowLength, (row + 1) * rowLength);
    });
    const count = sequence.choose(rows);
    this.#noteTokens(sequence, count);
    if (numDrafted === 0) return;
    const chosen = sequence.tokens.slice(position + 1);
    const differing = drafted.findIndex((token, index) => token !== chosen[index]);
    const numStood = differing < 0 ? numDrafted : differing;
    this.#noteDrafts(numDrafted, numStood);
    // The last chosen token is not in the cache, and neither may drafts be that did not stand.
    cache.truncate(Math.min(cache.length, position + 1 + numStood));
  }

  #noteDrafts(numDrafted: number, numStood: number): void {
    this.#policy.noteDrafts(numDrafted, numStood);
    this.#counts.add("spec_decode_num_drafts_total", 1);
    this.#counts.add("spec_decode_num_draft_tokens_total", numDrafted);
    this.#counts.add("spec_decode_num_accepted_tokens_total", numStood);
    this.#counts.accept(numStood);
  }

  #noteTokens(sequence: Sequence, count: number): void {
    const now = performance.now();
    this.#counts.add("generation_tokens_total", count);
    if (sequence.firstTokenAt === null) {
      sequence.firstTokenAt = now;
      this.#counts.observe("time_to_first_token_seconds", now - sequence.askedAt);
      this.#counts.observe("request_queue_time_seconds", sequence.admittedAt! - sequence.askedAt);
      this.#counts.observe("request_prefill_time_seconds", now - sequence.admittedAt!);
    } else {
      const between = now - sequence.lastTokenAt!;
      for (let index = 0; index < count; index++) {
        this.#counts.observe("inter_token_latency_seconds", between / count);
      }
    }
    sequence.lastTokenAt = now;
  }

  /** Run the MTP module over what the pass has read, and guess. */
  #draft(runs: readonly Run[], hidden: PassResult["hidden"]): void {
    const numStreams = runs.filter(
      ({ sequence }) => sequence.isDecoding && sequence.end === null,
    ).length;
    const most = this.#countDrafts(numStreams);
    let reading = runs.flatMap((run) => this.#readByModule(run, numStreams, most > 0));
    let source = hidden;
    for (let round = 1; reading.length > 0; round++) {
      const read = reading;
      const result = this.#decoder.draft(source, read);
      const guessed = read.filter(({ sequence, logits }, index) => {
        let goesOn = false;
        if (logits) this.#guard(sequence, () => (goesOn = sequence.guess(result.logits[index]!)));
        return goesOn;
      });
      if (round >= most) return;
      reading = guessed.flatMap((feed) => this.#behindGuess(feed, read.indexOf(feed)));
      source = result.hidden;
    }
  }

  /** How many drafts each stream of the next step should have. */
  #countDrafts(numStreams: number): number {
    if (numStreams === 0) return 0;
    return this.#options.drafting === "always" ? DRAFTS_MAX : this.#policy.depth(numStreams);
  }

  /** What the module reads of a run, nothing where it is not to draft. */
  #readByModule(run: Run, numStreams: number, isDrafting: boolean): Feeding[] {
    const { sequence, firstRow, position } = run;
    const { cache, tokens, usage, request } = sequence;
    // A prompt that is only read is read for somebody who may draft.
    const isOver = sequence.end !== null && request.maxTokens > 0;
    if (!sequence.drafts || isOver || cache.length <= position) return [];
    const isTried = this.#options.drafting !== "always" && usage.draftedTokens >= DRAFTS_TRIED;
    if (isTried && this.#policy.loses(numStreams)) {
      // The module's latents have a gap from here on: this sequence does not draft again.
      sequence.drafts = false;
      return [];
    }
    const nextTokens = Int32Array.from(tokens.slice(position + 1, cache.length + 1));
    if (nextTokens.length === 0) return [];
    const logits = sequence.isDecoding && isDrafting;
    return [{ sequence, cache, firstRow, position, nextTokens, logits }];
  }

  /** What the module reads to guess once more; nothing if there is no room. */
  #behindGuess({ sequence, position, nextTokens }: Feeding, firstRow: number): Feeding[] {
    const { cache, draftTokens } = sequence;
    if (!cache.reserve(draftTokens.length) || !sequence.lookBehindGuess()) return [];
    const at = position + nextTokens.length;
    const guess = Int32Array.of(draftTokens.at(-1)!);
    return [{ sequence, cache, firstRow, position: at, nextTokens: guess, logits: true }];
  }

  #giveBack(sequence: Sequence): void {
    this.prefixes.keep(sequence);
    sequence.cache.truncate(0);
    sequence.sharedWithTree.clear();
  }

  #finish(sequence: Sequence, reason: FinishReason): void {
    this.#giveBack(sequence);
    this.#remove(sequence);
    sequence.finish(reason);
    this.#counts.finish(reason);
    const now = performance.now();
    this.#counts.observe("e2e_request_latency_seconds", now - sequence.askedAt);
    if (sequence.firstTokenAt === null) return;
    this.#counts.observe("request_decode_time_seconds", now - sequence.firstTokenAt);
  }

  #fail(sequence: Sequence, failure: OperationalError): void {
    sequence.cache.truncate(0);
    this.#remove(sequence);
    this.#counts.finish("error");
    sequence.events.fail(failure);
  }

  #remove(sequence: Sequence): void {
    this.#sequences = this.#sequences.filter((each) => each !== sequence);
    this.#shares.leave(sequence.tenant);
  }

  /** A request's own failure ends it alone. */
  #guard(sequence: Sequence, work: () => void): void {
    try {
      work();
    } catch (failure) {
      if (!(failure instanceof OperationalError)) throw failure;
      this.#fail(sequence, failure);
      sequence.drafts = false;
    }
  }
}
