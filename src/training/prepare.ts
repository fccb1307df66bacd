/**
 * @file From files to what a trainer reads: corpus, tokenizer, token stores, loader.
 *
 * The tokenizer is learned from the training side alone, so held-out text stays unseen. It decides
 * the vocabulary and the special tokens, so the settings are complete only after this.
 */
import { OperationalError } from "../base/errors.ts";
import { trainBpe } from "../tokenizer/bpe-train.ts";
import { standardAddedTokens } from "../tokenizer/special-tokens.ts";
import { learnedVocabulary, Tokenizer } from "../tokenizer/tokenizer.ts";
import { BatchLoader } from "./data/batches.ts";
import { type Corpus, type CorpusReport, openCorpus } from "./data/corpus.ts";
import { openTokenStore, type TokenStore } from "./data/token-store.ts";
import { checkSettings, type TrainingSettings } from "./settings.ts";

/** What preparing goes through, in order. */
export const PREPARE_STAGES = ["reading", "learning the tokenizer", "tokenizing"] as const;
export type PrepareStage = (typeof PREPARE_STAGES)[number];

export interface PrepareOptions {
  readonly settings: TrainingSettings;
  /** Where token stores are kept; may be shared by runs. */
  readonly storeFolder: string;
  /** A resumed run's; learned if left out. */
  readonly tokenizer?: Tokenizer;
  /** `share` of the stage, from 0 to 1. */
  readonly onProgress?: (stage: PrepareStage, share: number) => void;
}

export interface PreparedData extends Disposable {
  readonly report: CorpusReport;
  /** The settings with the vocabulary and special tokens of the tokenizer in the model. */
  readonly settings: TrainingSettings;
  readonly tokenizer: Tokenizer;
  readonly train: TokenStore;
  readonly heldOut: TokenStore;
}

/** Read the corpus of the settings and make it ready. */
export async function prepareData(options: PrepareOptions): Promise<PreparedData> {
  const { settings, storeFolder } = options;
  const { data } = settings;
  if (data.paths.length === 0) {
    throw new OperationalError(
      "data.missing",
      "there is nothing to train on; name files or folders with --data",
    );
  }
  const report = options.onProgress ?? ((): void => {});
  report("reading", 0);
  const corpus = await openCorpus({ paths: data.paths, heldOutFraction: data.heldOutFraction });
  const tokenizer = options.tokenizer ?? (await learnTokenizer(corpus, settings, report));
  const bytes = Math.max(1, corpus.report.bytes);
  let bytesBefore = 0;
  const open = (split: "train" | "heldOut"): Promise<TokenStore> =>
    openTokenStore({
      folder: storeFolder,
      corpus,
      split,
      tokenizer,
      onProgress: (progress) =>
        report("tokenizing", Math.min(1, (bytesBefore + progress.bytes) / bytes)),
    });
  const train = await open("train");
  bytesBefore = train.numTextBytes;
  const heldOut = await open("heldOut");
  return {
    report: corpus.report,
    settings: withTokenizer(settings, tokenizer),
    tokenizer,
    train,
    heldOut,
    [Symbol.dispose]: (): void => {
      train[Symbol.dispose]();
      heldOut[Symbol.dispose]();
    },
  };
}

/** The settings with the model's vocabulary as the tokenizer has it. */
export function withTokenizer(settings: TrainingSettings, tokenizer: Tokenizer): TrainingSettings {
  const { vocabSize, bosId, eosId, padId } = tokenizer;
  const ids = { bosTokenId: bosId, eosTokenId: eosId, padTokenId: padId };
  return checkSettings({ ...settings, model: { ...settings.model, vocabSize, ...ids } });
}

/** The loader of a run's training side, at its beginning. */
export function makeLoader(data: PreparedData): BatchLoader {
  const { settings, train, tokenizer } = data;
  return new BatchLoader(train, tokenizer, {
    seqLength: settings.data.sequenceLength,
    lookahead: 1 + settings.model.numMtpModules,
    spanTokensMax: settings.data.spanTokensMax,
    fimRate: settings.data.fimRate,
    fimTokensMax: settings.data.fimTokensMax,
    seed: settings.seed,
  });
}

/** Learn from the training side, as much of it as the settings allow. */
async function learnTokenizer(
  corpus: Corpus,
  settings: TrainingSettings,
  report: (stage: PrepareStage, share: number) => void,
): Promise<Tokenizer> {
  const bytesMax = settings.data.tokenizerBytesMax;
  const merges = trainBpe(await corpus.sampleTexts(bytesMax), {
    vocabSize: settings.model.vocabSize,
    numAddedTokens: standardAddedTokens().length,
    bytesMax,
    onProgress: ({ stage, numTokens, vocabSize }) =>
      report("learning the tokenizer", stage === "count" ? 0 : numTokens / vocabSize),
  });
  return new Tokenizer(learnedVocabulary(merges));
}
