/**
 * @file A model to be served in benchmarks: random weights of the small preset, a long context.
 *
 * What a step costs does not depend on what the weights are, so none are trained. Its drafts are
 * worth nothing, though: those are measured with a trained model.
 */
import { readFileSync } from "node:fs";
import { openCpuDevice } from "../../../kernels/cpu.ts";
import { Model } from "../../../model/model.ts";
import { presetConfig } from "../../../model/presets.ts";
import { trainBpe } from "../../../tokenizer/bpe-train.ts";
import { standardAddedTokens } from "../../../tokenizer/special-tokens.ts";
import { learnedVocabulary, Tokenizer } from "../../../tokenizer/tokenizer.ts";
import { PRECISION_RECIPES } from "../../../training/recipe/recipes.ts";
import { writeModel } from "../../../training/run/checkpoint.ts";
import { installedDeclarations } from "../../quickstart/installed-declarations.ts";

export const BENCH_CONTEXT = 16_384;
const VOCAB_SIZE = 4096;
const SEED = 1;
const TOKENIZER_BYTES = 2 ** 20;

/** Write the model as a checkpoint. */
export async function writeBenchModel(path: string): Promise<void> {
  await using device = await openCpuDevice({});
  const tokenizer = makeTokenizer();
  const { vocabSize, bosId, eosId, padId } = tokenizer;
  const config = {
    ...presetConfig("small", vocabSize),
    ...{ bosTokenId: bosId, eosTokenId: eosId, padTokenId: padId },
    maxPositionEmbeddings: BENCH_CONTEXT,
  };
  const model = new Model(device, config, { precision: PRECISION_RECIPES.bf16, seed: SEED });
  writeModel(path, { model, tokenizer, dtype: "bf16" });
}

function makeTokenizer(): Tokenizer {
  const merges = trainBpe(readAll(installedDeclarations()), {
    vocabSize: VOCAB_SIZE,
    numAddedTokens: standardAddedTokens().length,
    bytesMax: TOKENIZER_BYTES,
  });
  return new Tokenizer(learnedVocabulary(merges));
}

function* readAll(paths: readonly string[]): Generator<string> {
  for (const path of paths) yield readFileSync(path, "utf8");
}
