/** @file An engine called directly, in this process: what the server's figures are held against. */

import { readFileSync } from "node:fs";
import { median } from "../../../base/median.ts";
import { Random } from "../../../base/random.ts";
import type { Engine, EngineRequest } from "../../../inference/engine/api.ts";
import { openEngine } from "../../../serving/models/open-engine.ts";
import { installedDeclarations } from "../../quickstart/installed-declarations.ts";
import { benchRequest } from "./bench-request.ts";
import type { ServeRow } from "./serve-row.ts";
import { randomPrompt } from "./workloads.ts";

const ROUNDS = 3;
const DECODED_TOKENS = 256;
const TEXTS = 6;
const TEXT_TOKENS = 64;

type Environment = Readonly<Record<string, string | undefined>>;

interface Decoded {
  readonly tokensPerSecond: number;
  readonly drafted: number;
  readonly accepted: number;
}

/** Tokens a second of one stream, from the first token to the last. */
export async function measureSingleStream(path: string, env: Environment): Promise<ServeRow> {
  const engine = await openEngine(path, env);
  try {
    const random = new Random(3, "direct");
    const rates: number[] = [];
    for (let round = 0; round <= ROUNDS; round++) {
      const prompt = randomPrompt(random, engine.description.vocabSize, TEXT_TOKENS);
      rates.push((await decode(engine, prompt, "auto")).tokensPerSecond);
    }
    // The first round generates code.
    const value = median(rates.slice(1));
    const workload = `${DECODED_TOKENS} tokens after ${TEXT_TOKENS}`;
    return { name: "one stream, no HTTP", workload, value, unit: "tokens/s" };
  } finally {
    await engine.close();
  }
}

/** What drafting brings a trained model on declarations: the same tokens, in less time. */
export async function measureDrafts(path: string, env: Environment): Promise<ServeRow> {
  const engine = await openEngine(path, env);
  try {
    const prompts = declarationPrompts(engine);
    await decode(engine, prompts[0]!, "auto");
    const rates = { auto: [] as number[], off: [] as number[] };
    let [drafted, accepted] = [0, 0];
    for (const prompt of prompts) {
      for (const draft of ["off", "auto"] as const) {
        const decoded = await decode(engine, prompt, draft);
        rates[draft].push(decoded.tokensPerSecond);
        drafted += decoded.drafted;
        accepted += decoded.accepted;
      }
    }
    const [value, without] = [median(rates.auto), median(rates.off)];
    const share = drafted === 0 ? "none drafted" : `${((100 * accepted) / drafted).toFixed(0)} %`;
    return {
      name: "one stream, drafting",
      workload: `greedy, ${DECODED_TOKENS} tokens after ${TEXT_TOKENS} of declarations`,
      value,
      unit: "tokens/s",
      ratio: value / without,
      of: "not drafting",
      note: `${accepted} of ${drafted} drafts stood (${share})`,
    };
  } finally {
    await engine.close();
  }
}

/** Beginnings of texts that the quickstart and the tests' model learn from. */
function declarationPrompts({ tokenizer }: Engine): number[][] {
  const paths = installedDeclarations();
  const step = Math.max(1, Math.floor(paths.length / TEXTS));
  return paths
    .filter((_, index) => index % step === 0)
    .map((path) => {
      const text = readFileSync(path, "utf8").slice(0, 20 * TEXT_TOKENS);
      return [tokenizer.bosId, ...tokenizer.encode(text)].slice(0, TEXT_TOKENS);
    });
}

async function decode(
  engine: Engine,
  prompt: readonly number[],
  draft: EngineRequest["draft"],
): Promise<Decoded> {
  const request = benchRequest(prompt, {
    maxTokens: DECODED_TOKENS,
    sampling: { temperature: 0, topP: 1, topK: 0, minP: 0 },
    adjustments: {
      bias: [[engine.tokenizer.eosId, -100]],
      presencePenalty: 0,
      frequencyPenalty: 0,
    },
    draft,
  });
  let firstAt = 0;
  for await (const event of engine.generate(request, new AbortController().signal)) {
    if (event.kind === "tokens" && firstAt === 0) firstAt = performance.now();
    if (event.kind !== "finished") continue;
    const { completionTokens, draftedTokens, acceptedTokens } = event.usage;
    const seconds = (performance.now() - firstAt) / 1000;
    return {
      tokensPerSecond: (completionTokens - 1) / seconds,
      drafted: draftedTokens,
      accepted: acceptedTokens,
    };
  }
  return { tokensPerSecond: Number.NaN, drafted: 0, accepted: 0 };
}
