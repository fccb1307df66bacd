/**
 * @file The independent proof: llama.cpp runs a model that was trained here and must agree with our
 * decoder.
 *
 *     HADAL_LLAMA_DIR=DIR node tools/nightly/llama-proof.ts --model CHECKPOINT [--windows N]
 *     [--dtype f32|q8_0|q4_0] [--json] FILE…
 *
 * The checkpoint is exported as GGUF; llama.cpp, through `node-llama-cpp` with an F32 KV cache,
 * reads windows of real text, and after every token both programs' next-token probabilities are
 * compared; then both continue several prompts greedily. Also compared: how both cut the text into
 * tokens.
 *
 * In F32 probabilities are at most 1e-3 apart and continuations the same. In q8_0 and q4_0 the same
 * codes stand in both, as `int8:g32` and `int4:g32` here; but llama.cpp rounds activations to eight
 * bits in blocks of 32 where we round them to bf16. So probabilities may be 0.1 apart, the logits'
 * distance 5% of their deviation (measured: 0.035 and 2.4%), and continuations part at near ties.
 *
 * A nightly check: nothing here installs anything. `node-llama-cpp` is no dependency; DIR is a
 * folder where `npm install node-llama-cpp --ignore-scripts` was run. Exit codes: 0 agreement, 1
 * disagreement, 2 it could not run.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { OperationalError } from "../../src/base/errors.ts";
import { cpuOptionsFromEnvironment } from "../../src/device/cpu/cpu-device.ts";
import { Decoder } from "../../src/inference/decoder.ts";
import { exportGguf } from "../../src/inference/export-gguf.ts";
import { generate } from "../../src/inference/generate.ts";
import { GREEDY } from "../../src/inference/sampler.ts";
import { Session } from "../../src/inference/session.ts";
import { openCpuDevice } from "../../src/kernels/cpu.ts";
import {
  type LoadedModel,
  type LoadOptions,
  loadCheckpoint,
} from "../../src/training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../src/training/run/run-folder.ts";
import { LlamaModel } from "./llama-model.ts";

interface Proof {
  /** How our side is loaded. */
  readonly load: LoadOptions;
  readonly probabilityErrorMax: number;
  /** Of the logits' distance (root mean square), over their own deviation. */
  readonly relativeErrorMax: number;
  readonly mustContinueAlike: boolean;
}

const integers = (bits: 8 | 4): Pick<Proof, "load"> => ({
  load: { weights: { bits, groupSize: 32, asymmetric: false } },
});
const BLOCKS = { probabilityErrorMax: 0.1, relativeErrorMax: 0.05, mustContinueAlike: false };
const PROOFS: Readonly<Record<"f32" | "q8_0" | "q4_0", Proof>> = {
  f32: {
    load: { precision: "f32" },
    probabilityErrorMax: 1e-3,
    relativeErrorMax: 1e-3,
    mustContinueAlike: true,
  },
  q8_0: { ...integers(8), ...BLOCKS },
  q4_0: { ...integers(4), ...BLOCKS },
};

const WINDOW_TOKENS = 128;
const PROMPT_TOKENS = 32;
const CONTINUATION_TOKENS = 64;

interface Agreement {
  readonly windows: number;
  readonly positions: number;
  /** Over all positions and tokens. */
  readonly maxProbabilityError: number;
  readonly maxLogitError: number;
  readonly rmsLogitError: number;
  readonly logitDeviation: number;
  readonly sameLikeliest: number;
  readonly sameTokenization: number;
  readonly continuations: number;
  readonly sameContinuations: number;
  /**
   * Where continuations part, how much likelier the first token was than the second: a tie explains
   * it.
   */
  readonly partingGaps: readonly number[];
}

async function main(): Promise<number> {
  const { values, positionals: files } = parseArgs({
    allowPositionals: true,
    options: {
      model: { type: "string" },
      windows: { type: "string", default: "6" },
      dtype: { type: "string", default: "f32" },
      json: { type: "boolean", default: false },
    },
  });
  const { model: path } = values;
  if (path === undefined || files.length === 0) {
    throw new OperationalError("usage.flag", "give --model CHECKPOINT and at least one text file");
  }
  const dtype = values.dtype as keyof typeof PROOFS;
  const proof = PROOFS[dtype];
  if (!Object.hasOwn(PROOFS, dtype)) {
    throw new OperationalError("usage.flag", `--dtype is ${Object.keys(PROOFS).join(", ")}`);
  }
  await using device = await openCpuDevice(cpuOptionsFromEnvironment(process.env));
  const checkpoint = resolveCheckpoint(path);
  const loaded = loadCheckpoint(device, checkpoint, proof.load);
  const folder = mkdtempSync(join(tmpdir(), "hadal-proof-"));
  try {
    const file = join(folder, "model.gguf");
    exportGguf(loadCheckpoint(device, checkpoint, { precision: "f32" }), file, dtype);
    await using llama = await LlamaModel.open(file, WINDOW_TOKENS + CONTINUATION_TOKENS);
    const texts = files.map((name) => readFileSync(name, "utf8"));
    const windows = cutWindows(loaded, texts, Number(values.windows));
    const decoder = new Decoder(device, loaded.model);
    const agreement = await compare({ decoder, loaded, llama, windows });
    const relativeError = agreement.rmsLogitError / agreement.logitDeviation;
    const agrees =
      agreement.maxProbabilityError <= proof.probabilityErrorMax &&
      relativeError <= proof.relativeErrorMax &&
      (!proof.mustContinueAlike || agreement.sameContinuations === agreement.continuations);
    print({ ...agreement, agrees }, values.json);
    return agrees ? 0 : 1;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

interface Window {
  readonly text: string;
  readonly tokens: Int32Array;
}

/** Windows evenly spread over the texts, each beginning as a document does. */
function cutWindows({ tokenizer }: LoadedModel, texts: readonly string[], count: number): Window[] {
  const text = texts.join("\n");
  return Array.from({ length: count }, (_, index) => {
    const start = Math.floor((index * text.length) / count);
    const piece = text.slice(start, start + 8 * WINDOW_TOKENS).toWellFormed();
    const encoded = tokenizer.encode(piece).subarray(0, WINDOW_TOKENS - 1);
    return { text: piece, tokens: Int32Array.of(tokenizer.bosId, ...encoded) };
  });
}

async function compare(subject: {
  readonly decoder: Decoder;
  readonly loaded: LoadedModel;
  readonly llama: LlamaModel;
  readonly windows: readonly Window[];
}): Promise<Agreement> {
  const { decoder, loaded, llama, windows } = subject;
  const { tokenizer } = loaded;
  const session = new Session(decoder, WINDOW_TOKENS + CONTINUATION_TOKENS);
  const errors = new LogitErrors();
  const cache = decoder.openCache();
  let [sameTokenization, sameContinuations] = [0, 0];
  const partingGaps: number[] = [];
  for (const { text, tokens } of windows) {
    cache.truncate(0);
    const [ours] = decoder.forward([{ cache, tokens, logits: "all" }]);
    const theirs = await llama.logits(tokens);
    const { vocabSize } = loaded.model.config;
    theirs.forEach((row, index) => {
      errors.add(ours!.subarray(index * vocabSize, (index + 1) * vocabSize), row);
    });
    const tokenized = llama.tokenize(text);
    if (tokenizer.encode(text).join() === tokenized.join()) sameTokenization++;
    const prompt = tokens.subarray(0, PROMPT_TOKENS);
    const options = { sampling: GREEDY, seed: 0, maxTokens: CONTINUATION_TOKENS, endTokens: [] };
    const said = await generate(session, tokenizer, prompt, options);
    const llamaSaid = await llama.continueGreedily(prompt, CONTINUATION_TOKENS);
    const parting = said.tokens.findIndex((token, index) => token !== llamaSaid[index]);
    if (parting < 0) sameContinuations++;
    else {
      const before = Int32Array.of(...prompt, ...said.tokens.slice(0, parting));
      session.keepCommon(before);
      const logits = (await session.read(before, () => false))!;
      const [first, second] = softmax(logits).sort().subarray(-2).reverse();
      partingGaps.push(first! - second!);
    }
  }
  return {
    windows: windows.length,
    ...errors.summary(),
    sameTokenization,
    continuations: windows.length,
    sameContinuations,
    partingGaps,
  };
}

function softmax(logits: Float32Array): Float64Array {
  const largest = logits.reduce((most, logit) => Math.max(most, logit), Number.NEGATIVE_INFINITY);
  const weights = Float64Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

/** What distances between two programs' logits add up to. */
class LogitErrors {
  #positions = 0;
  #sameLikeliest = 0;
  #maxProbability = 0;
  #maxLogit = 0;
  #squares = 0;
  #spread = 0;
  #elements = 0;

  add(ours: Float32Array, theirs: Float32Array): void {
    const [p, q] = [softmax(ours), softmax(theirs)];
    const mean = ours.reduce((sum, logit) => sum + logit, 0) / ours.length;
    this.#positions++;
    if (p.indexOf(Math.max(...p)) === q.indexOf(Math.max(...q))) this.#sameLikeliest++;
    ours.forEach((logit, token) => {
      const distance = Math.abs(logit - theirs[token]!);
      this.#maxLogit = Math.max(this.#maxLogit, distance);
      this.#maxProbability = Math.max(this.#maxProbability, Math.abs(p[token]! - q[token]!));
      this.#squares += distance ** 2;
      this.#spread += (logit - mean) ** 2;
    });
    this.#elements += ours.length;
  }

  summary(): Pick<
    Agreement,
    | "positions"
    | "maxProbabilityError"
    | "maxLogitError"
    | "rmsLogitError"
    | "logitDeviation"
    | "sameLikeliest"
  > {
    return {
      positions: this.#positions,
      maxProbabilityError: this.#maxProbability,
      maxLogitError: this.#maxLogit,
      rmsLogitError: Math.sqrt(this.#squares / this.#elements),
      logitDeviation: Math.sqrt(this.#spread / this.#elements),
      sameLikeliest: this.#sameLikeliest,
    };
  }
}

function print(result: Agreement & { readonly agrees: boolean }, asJson: boolean): void {
  if (asJson) {
    process.stdout.write(`${JSON.stringify(result)}\n`);
    return;
  }
  for (const [name, value] of Object.entries(result)) {
    process.stdout.write(`${name.padEnd(22)} ${JSON.stringify(value)}\n`);
  }
}

try {
  process.exitCode = await main();
} catch (error) {
  if (!(error instanceof OperationalError)) throw error;
  process.stderr.write(`llama-proof: ${error.message}\n`);
  process.exitCode = 2;
}
