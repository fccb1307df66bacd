/**
 * @file llama.cpp as the proof sees it: a model file in, logits and greedy continuations out.
 *
 * Over `node-llama-cpp`, found from HADAL_LLAMA_DIR; only the few parts of its interface used here
 * are declared. The prebuilt binary is used, never a build. The KV cache is F32 (F16 is the
 * default), flash attention is off. One thread: its threads spin while they wait for each other,
 * and on a busy machine two take a hundred times as long as one.
 */
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { OperationalError } from "../../src/base/errors.ts";

interface NextToken {
  readonly next: { readonly logits?: ReadonlyMap<number, number> };
}

interface Sequence {
  clearHistory(): Promise<void>;
  controlledEvaluate(
    input: readonly (readonly [number, unknown])[],
  ): Promise<readonly (NextToken | undefined)[]>;
}

interface NodeLlamaModel {
  tokenize(text: string, specialTokens?: boolean): readonly number[];
  createContext(options: unknown): Promise<{ getSequence(): Sequence }>;
}

interface Llama {
  loadModel(options: unknown): Promise<NodeLlamaModel>;
  dispose(): Promise<void>;
}

interface NodeLlama {
  getLlama(options: unknown): Promise<Llama>;
}

export class LlamaModel implements AsyncDisposable {
  readonly #llama: Llama;
  readonly #model: NodeLlamaModel;
  readonly #sequence: Sequence;

  private constructor(llama: Llama, model: NodeLlamaModel, sequence: Sequence) {
    this.#llama = llama;
    this.#model = model;
    this.#sequence = sequence;
  }

  static async open(modelPath: string, contextSize: number): Promise<LlamaModel> {
    const { getLlama } = await importNodeLlama();
    const llama = await getLlama({
      build: "never",
      gpu: false,
      progressLogs: false,
      logLevel: "error",
      maxThreads: 1,
    });
    const model = await llama.loadModel({ modelPath });
    const context = await model.createContext({
      contextSize,
      sequences: 1,
      threads: 1,
      flashAttention: false,
      experimentalKvCacheKeyType: "F32",
      experimentalKvCacheValueType: "F32",
    });
    return new LlamaModel(llama, model, context.getSequence());
  }

  /** Token ids of a text, without begin of sentence. */
  tokenize(text: string): readonly number[] {
    return this.#model.tokenize(text, false);
  }

  /** The logits after each token of a sequence. */
  async logits(tokens: Int32Array): Promise<Float32Array[]> {
    await this.#sequence.clearHistory();
    return this.#evaluate(tokens, () => true);
  }

  /** The likeliest tokens after a prompt, one after another; the lowest id of equal ones. */
  async continueGreedily(prompt: Int32Array, count: number): Promise<number[]> {
    await this.#sequence.clearHistory();
    const isLast = (index: number): boolean => index === prompt.length - 1;
    let [logits] = await this.#evaluate(prompt, isLast);
    const said: number[] = [];
    while (said.length < count) {
      const likeliest = logits!.reduce(
        (best, logit, id) => (logit > logits![best]! ? id : best),
        0,
      );
      said.push(likeliest);
      [logits] = await this.#evaluate(Int32Array.of(likeliest), () => true);
    }
    return said;
  }

  async #evaluate(
    tokens: Int32Array,
    isWanted: (index: number) => boolean,
  ): Promise<Float32Array[]> {
    const input = Array.from(tokens, (token, index) => {
      return [token, isWanted(index) ? { generateNext: { logits: true } } : {}] as const;
    });
    const results = await this.#sequence.controlledEvaluate(input);
    return results
      .filter((result) => result?.next.logits !== undefined)
      .map((result) => toRow(result!.next.logits!));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#llama.dispose();
  }
}

function toRow(logits: ReadonlyMap<number, number>): Float32Array {
  const row = new Float32Array(logits.size);
  for (const [token, logit] of logits) row[token] = logit;
  return row;
}

async function importNodeLlama(): Promise<NodeLlama> {
  const folder = process.env["HADAL_LLAMA_DIR"] ?? process.cwd();
  try {
    const require = createRequire(join(folder, "package.json"));
    return (await import(pathToFileURL(require.resolve("node-llama-cpp")).href)) as NodeLlama;
  } catch (error) {
    throw new OperationalError(
      "platform.llama",
      `node-llama-cpp is not to be found from ${folder}; ` +
        "run npm install node-llama-cpp --ignore-scripts in a folder, name it in HADAL_LLAMA_DIR",
      { folder },
      error,
    );
  }
}
