/**
 * @file An engine that says the same token as often as it is asked to, at once: with it, what HTTP
 * costs is all there is to measure.
 */
import type { Engine, EngineEvent, EngineRequest } from "../../../inference/engine/api.ts";
import type { Tokenizer } from "../../../tokenizer/tokenizer.ts";

const TEXT = " word";

export class IdleEngine implements Engine {
  readonly description: Engine["description"];
  readonly tokenizer: Tokenizer;

  constructor(tokenizer: Tokenizer, contextTokens: number) {
    this.tokenizer = tokenizer;
    this.description = {
      modelHash: "idle",
      contextTokens,
      vocabSize: tokenizer.vocabSize,
      hiddenDim: 1,
      canDraft: false,
      cacheTokens: contextTokens,
    };
  }

  async *generate(request: EngineRequest, signal: AbortSignal): AsyncGenerator<EngineEvent> {
    const promptTokens = request.prompt.length;
    yield { kind: "started", promptTokens, cachedTokens: 0, nearMiss: null, queueMs: 0 };
    const tokens = [...this.tokenizer.encode(TEXT)].slice(0, 1);
    let completionTokens = 0;
    while (completionTokens < request.maxTokens && !signal.aborted) {
      completionTokens++;
      yield { kind: "tokens", text: TEXT, tokens, logProbabilities: null };
    }
    const usage = {
      promptTokens,
      cachedTokens: 0,
      cachedFromDisk: 0,
      nearMiss: null,
      completionTokens,
      draftedTokens: 0,
      acceptedTokens: 0,
    };
    yield { kind: "finished", reason: "length", stop: null, usage };
  }

  async embed(): Promise<Float32Array> {
    return Float32Array.of(1);
  }

  async metrics(): Promise<[]> {
    return [];
  }

  async close(): Promise<void> {}
}
