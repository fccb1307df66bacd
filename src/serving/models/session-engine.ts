/**
 * @file An engine over one session: one request at a time, in this thread.
 *
 * Requests wait in a queue; a long prompt or answer gives the event loop a turn after every pass.
 * It does not draft; it refuses to constrain, to adjust logits, to embed, and to report
 * alternatives or the prompt's probabilities.
 */
import { OperationalError } from "../../base/errors.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { Decoder } from "../../inference/decoder.ts";
import type {
  Engine,
  EngineEvent,
  EngineRequest,
  FinishReason,
} from "../../inference/engine/api.ts";
import { generate } from "../../inference/generate.ts";
import { Session } from "../../inference/session.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { loadCheckpoint } from "../../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";

type Environment = Readonly<Record<string, string | undefined>>;

export async function openSessionEngine(path: string, env: Environment): Promise<Engine> {
  const device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  const { model, tokenizer } = loadCheckpoint(device, resolveCheckpoint(path));
  const contextTokens = model.config.maxPositionEmbeddings;
  const session = new Session(new Decoder(device, model), contextTokens);
  let last: Promise<unknown> = Promise.resolve();
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const result = last.then(work);
    last = result.catch(() => {});
    return result;
  };
  return {
    description: {
      modelHash: "",
      contextTokens,
      vocabSize: tokenizer.vocabSize,
      hiddenDim: model.config.hiddenDim,
      canDraft: false,
      cacheTokens: contextTokens,
    },
    tokenizer,
    generate: (request, signal) => run(request, signal, { session, tokenizer, inTurn }),
    embed: () => {
      throw new OperationalError("inference.embed", "this engine makes no embeddings");
    },
    metrics: async () => [],
    close: async () => device[Symbol.asyncDispose](),
  };
}

function refuseWhatIsMissing(request: EngineRequest): void {
  const { constraint, adjustments, topLogProbabilities, promptLogProbabilities } = request;
  const missing = [
    [constraint !== null, "structured output (response_format, a tool that must be called)"],
    [adjustments !== null, "logit_bias, penalties and budgets of reasoning"],
    [(topLogProbabilities ?? 0) > 0, "alternatives of tokens (top_logprobs, logprobs above 0)"],
    [promptLogProbabilities, "log-probabilities of the prompt"],
    [request.maxTokens === 0, "reading a prompt without writing (max_tokens 0)"],
  ] as const;
  const found = missing.find(([isAsked]) => isAsked);
  if (found === undefined) return;
  throw new OperationalError("inference.unsupported", `this engine has no ${found[1]}`);
}

interface Parts {
  readonly session: Session;
  readonly tokenizer: Engine["tokenizer"];
  inTurn<T>(work: () => Promise<T>): Promise<T>;
}

async function* run(
  request: EngineRequest,
  signal: AbortSignal,
  { session, tokenizer, inTurn }: Parts,
): AsyncGenerator<EngineEvent> {
  refuseWhatIsMissing(request);
  const { prompt } = request;
  const texts: string[] = [];
  let wake = (): void => {};
  const work = inTurn(() =>
    generate(
      session,
      tokenizer,
      prompt,
      {
        sampling: request.sampling,
        seed: request.seed,
        maxTokens: request.maxTokens,
        stopStrings: request.stopStrings,
        ...(request.endTokens === null ? {} : { endTokens: request.endTokens }),
        signal,
      },
      (text) => {
        texts.push(text);
        wake();
      },
    ),
  ).finally(() => wake());
  work.catch(() => {});
  yield {
    kind: "started",
    promptTokens: prompt.length,
    cachedTokens: 0,
    nearMiss: null,
    queueMs: 0,
  };
  let isOver = false;
  const over = work.then(
    () => (isOver = true),
    () => (isOver = true),
  );
  while (!isOver || texts.length > 0) {
    const text = texts.splice(0).join("");
    if (text !== "") yield { kind: "tokens", text, tokens: [], logProbabilities: null };
    else await Promise.race([over, new Promise<void>((resolve) => (wake = resolve))]);
  }
  const { reason, stop, tokens, logProbabilities: values, numCachedTokens } = await work;
  const logProbabilities =
    request.topLogProbabilities === null
      ? null
      : tokens.map((token, index) => ({ token, logProbability: values[index]!, top: [] }));
  yield { kind: "tokens", text: "", tokens, logProbabilities };
  yield {
    kind: "finished",
    reason: reason satisfies FinishReason,
    stop,
    usage: {
      promptTokens: prompt.length,
      cachedTokens: numCachedTokens,
      completionTokens: tokens.length,
      draftedTokens: 0,
      acceptedTokens: 0,
    },
  };
}
