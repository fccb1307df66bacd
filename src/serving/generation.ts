/**
 * @file One answer from an engine: the job that every protocol's request becomes, and its events.
 *
 * A job is one prompt and one answer; a request of several choices is several jobs. Where reasoning
 * must not be constrained, or has a budget, a job runs as two requests of the engine: the
 * reasoning, ended by `</think>` or by its budget, and the answer after it, whose prompt is then
 * in the prefix cache. To whoever reads the events they are one.
 */
import type {
  Engine,
  EngineEvent,
  EngineRequest,
  EngineUsage,
  NearMiss,
  TokenLogProbability,
} from "../inference/engine/api.ts";
import { type AnswerForm, AnswerParser, type Delta } from "./chat/answer-parser.ts";
import { type FieldNames, withField } from "./failure.ts";

/** Reasoning as a request of its own. */
export interface ReasoningPhase {
  /** The token of `</think>`. */
  readonly endToken: number;
  /** The most tokens of reasoning; null: as many as the answer may have. */
  readonly tokensMax: number | null;
}

export interface Job {
  readonly request: EngineRequest;
  readonly fieldNames: FieldNames;
  /** null: plain text, nothing in it has a meaning. */
  readonly form: AnswerForm | null;
  readonly reasoning: ReasoningPhase | null;
}

export interface Outcome {
  readonly reason: "end" | "stop" | "length" | "toolCalls" | "aborted";
  readonly stop: string | null;
  readonly usage: EngineUsage;
  readonly reasoningTokens: number;
}

export type JobEvent =
  | { readonly kind: "started"; readonly cachedTokens: number; readonly nearMiss: NearMiss | null }
  | { readonly kind: "prompt"; readonly logProbabilities: readonly (TokenLogProbability | null)[] }
  | {
      readonly kind: "delta";
      readonly deltas: readonly Delta[];
      readonly tokens: readonly number[];
      /** How many of the tokens, the first ones, belong to the reasoning. */
      readonly numReasoning: number;
      readonly logProbabilities: readonly TokenLogProbability[] | null;
    }
  | { readonly kind: "finished"; readonly outcome: Outcome };

type Finished = Extract<EngineEvent, { kind: "finished" }>;

/** Run a job; ends with its "finished". What the engine refuses is said of the request's field. */
export async function* runJob(
  engine: Engine,
  job: Job,
  signal: AbortSignal,
): AsyncGenerator<JobEvent, void> {
  try {
    yield* runPhases(engine, job, signal);
  } catch (error) {
    throw withField(error, job.fieldNames);
  }
}

async function* runPhases(
  engine: Engine,
  job: Job,
  signal: AbortSignal,
): AsyncGenerator<JobEvent, void> {
  const reader = new AnswerReader(job, engine.tokenizer.specialId("thinkEnd"));
  let { request } = job;
  let before: Finished | undefined;
  if (job.reasoning !== null) {
    before = yield* runPhase(
      engine,
      reasoningRequest(request, job.reasoning, engine),
      reader,
      signal,
    );
    const used = before.usage.completionTokens;
    const isOver = used >= request.maxTokens || !["end", "length"].includes(before.reason);
    if (isOver) {
      yield* reader.finish(before);
      return;
    }
    yield reader.closeReasoning();
    const prompt = Int32Array.from([...request.prompt, ...reader.tokens, job.reasoning.endToken]);
    request = { ...request, prompt, maxTokens: request.maxTokens - used };
  }
  const finished = yield* runPhase(engine, request, reader, signal, before !== undefined);
  yield* reader.finish(before === undefined ? finished : joined(before, finished));
}

/** Forwards an engine's events; returns the last one. */
async function* runPhase(
  engine: Engine,
  request: EngineRequest,
  reader: AnswerReader,
  signal: AbortSignal,
  isSecond = false,
): AsyncGenerator<JobEvent, Finished> {
  for await (const event of engine.generate(request, signal)) {
    switch (event.kind) {
      case "started":
        if (!isSecond) yield event;
        break;
      case "prompt":
        yield event;
        break;
      case "tokens":
        yield reader.read(event);
        break;
      case "finished":
        return event;
      case "progress":
        break;
    }
  }
  return ABORTED;
}

const NO_USAGE: EngineUsage = {
  promptTokens: 0,
  cachedTokens: 0,
  cachedFromDisk: 0,
  nearMiss: null,
  completionTokens: 0,
  draftedTokens: 0,
  acceptedTokens: 0,
};
const ABORTED: Finished = { kind: "finished", reason: "aborted", stop: null, usage: NO_USAGE };

/** The end of the text is kept from the reasoning: only `</think>` or the budget ends it. */
function reasoningRequest(
  request: EngineRequest,
  { endToken, tokensMax }: ReasoningPhase,
  engine: Engine,
): EngineRequest {
  const { adjustments } = request;
  const bias = (request.endTokens ?? [engine.tokenizer.eosId]).map(
    (token) => [token, -100] as const,
  );
  return {
    ...request,
    maxTokens: Math.min(request.maxTokens, tokensMax ?? request.maxTokens),
    constraint: null,
    endTokens: [endToken],
    adjustments: {
      presencePenalty: adjustments?.presencePenalty ?? 0,
      frequencyPenalty: adjustments?.frequencyPenalty ?? 0,
      bias: [...(adjustments?.bias ?? []), ...bias],
    },
  };
}

function joined(reasoning: Finished, answer: Finished): Finished {
  const sum = (field: "completionTokens" | "draftedTokens" | "acceptedTokens"): number =>
    reasoning.usage[field] + answer.usage[field];
  return {
    ...answer,
    usage: {
      ...reasoning.usage,
      completionTokens: sum("completionTokens"),
      draftedTokens: sum("draftedTokens"),
      acceptedTokens: sum("acceptedTokens"),
    },
  };
}

/** Tokens and text of one answer, taken apart. */
class AnswerReader {
  readonly tokens: number[] = [];
  readonly #parser: AnswerParser | null;
  readonly #thinkEnd: number | undefined;
  #reasoningTokens = 0;
  #isThinking: boolean;
  #hasCalls = false;

  constructor({ form }: Job, thinkEnd: number | undefined) {
    this.#parser = form === null ? null : new AnswerParser(form);
    this.#thinkEnd = thinkEnd;
    this.#isThinking = form?.isThinking ?? false;
  }

  read({ text, tokens, logProbabilities }: Extract<EngineEvent, { kind: "tokens" }>): JobEvent {
    let numReasoning = 0;
    for (const token of tokens) {
      this.tokens.push(token);
      if (!this.#isThinking) continue;
      numReasoning++;
      this.#isThinking = token !== this.#thinkEnd;
    }
    this.#reasoningTokens += numReasoning;
    return { kind: "delta", deltas: this.#parse(text), tokens, numReasoning, logProbabilities };
  }

  /** The reasoning ended with a token that the engine did not give out. */
  closeReasoning(): JobEvent {
    this.#isThinking = false;
    return textOnly(this.#parse("</think>"));
  }

  *finish({ reason, stop, usage }: Finished): Generator<JobEvent> {
    const rest = this.#parser?.end() ?? [];
    this.#notice(rest);
    if (rest.length > 0) yield textOnly(rest);
    const asked = reason === "context" ? "length" : reason;
    const outcome: Outcome = {
      reason: this.#hasCalls && asked === "end" ? "toolCalls" : asked,
      stop,
      usage,
      reasoningTokens: this.#reasoningTokens,
    };
    yield { kind: "finished", outcome };
  }

  #parse(text: string): readonly Delta[] {
    if (this.#parser !== null) {
      const deltas = this.#parser.push(text);
      this.#notice(deltas);
      return deltas;
    }
    return text === "" ? [] : [{ kind: "content", text }];
  }

  #notice(deltas: readonly Delta[]): void {
    this.#hasCalls ||= deltas.some(({ kind }) => kind === "toolCall");
  }
}

/** Text whose tokens came before. */
function textOnly(deltas: readonly Delta[]): JobEvent {
  return { kind: "delta", deltas, tokens: [], numReasoning: 0, logProbabilities: null };
}

/** Events of several jobs as they come, each with its job's index. */
export async function* runJobs(
  engine: Engine,
  jobs: readonly Job[],
  signal: AbortSignal,
): AsyncGenerator<readonly [job: number, event: JobEvent]> {
  const runs = jobs.map((job) => runJob(engine, job, signal));
  const next = async (index: number): Promise<[number, IteratorResult<JobEvent, void>]> => [
    index,
    await runs[index]!.next(),
  ];
  const pending = new Map(runs.map((_, index) => [index, next(index)]));
  try {
    while (pending.size > 0) {
      const [index, result] = await Promise.race(pending.values());
      if (result.done === true) {
        pending.delete(index);
        continue;
      }
      yield [index, result.value];
      pending.set(index, next(index));
    }
  } finally {
    // One failed or the reader left: the others end too, and what they throw is nobody's.
    for (const promise of pending.values()) promise.catch(() => {});
    await Promise.allSettled(runs.map((run) => run.return()));
  }
}
