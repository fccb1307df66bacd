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

type OnProgress = (stage: PrepareStage, share: number) => void;

export interface PrepareOptions {
  readonly settings: TrainingSettings;
  /** What `openTrainingText` gave for the settings. */
  readonly corpus: Corpus;
  /** Where token stores are kept; may be shared by runs. */
  readonly storeFolder: string;
  /** A resumed run's; learned if left out. */
  readonly tokenizer?: Tokenizer;
  /** `share` of the stage, from 0 to 1. */
  readonly onProgress?: OnProgress;
}

export interface PreparedData extends Disposable {
  readonly report: CorpusReport;
  /** The settings with the vocabulary and special tokens of the tokenizer in the model. */
  readonly settings: TrainingSettings;
  readonly tokenizer: Tokenizer;
  readonly train: TokenStore;
  readonly heldOut: TokenStore;
}

/** Read all that the settings name; refuses settings without a text. Writes nothing. */
export async function openTrainingText(
  { data }: TrainingSettings,
  report: OnProgress = (): void => {},
): Promise<Corpus> {
  if (data.paths.length === 0) {
    throw new OperationalError(
      "data.missing",
      "there is nothing to train on; name files or folders with --data",
    );
  }
  report("reading", 0);
  return await openCorpus({ paths: data.paths, heldOutFraction: data.heldOutFraction });
}

/** Make a corpus ready for training. */
export async function prepareData(options: PrepareOptions): Promise<PreparedData> {
  const { settings, corpus, storeFolder } = options;
  const report = options.onProgress ?? ((): void => {});
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
  report: OnProgress,
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
