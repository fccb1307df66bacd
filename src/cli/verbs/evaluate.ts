/** @file `hadal evaluate bpb`: bits per byte of files under a model. */
import { counted } from "../../base/counted.ts";
import { OperationalError } from "../../base/errors.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import {
  type BitsPerByteResult,
  type EvaluatedDocument,
  evaluateBitsPerByte,
} from "../../evaluation/bits-per-byte.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { openCorpus } from "../../training/data/corpus.ts";
import { isRunFolder } from "../../training/run/run-folder.ts";
import type { evaluate } from "../declarations/evaluate.ts";
import { loadModel } from "../load-model.ts";
import { runSettings } from "../run-settings.ts";
import type { Run } from "../verb.ts";

/** Files listed one by one; more are summed up. */
const LISTED_FILES = 20;
/** Tokens of a window for a checkpoint that does not belong to a run. */
const WINDOW_TOKENS = 256;

export const run: Run<typeof evaluate> = async (values, { output, env }) => {
  const { model: path, data, weights } = values;
  const documents = await readDocuments(data);
  await using device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  const { model, tokenizer } = loadModel(device, path, weights);
  const result = await evaluateBitsPerByte(model, tokenizer, documents, {
    seqLength: Math.min(windowTokens(path), model.config.maxPositionEmbeddings),
    onProgress: (done, total) => output.progress({ done, total, text: "bits per byte" }),
  });
  const worstFirst = result.documents.toSorted((a, b) => b.bitsPerByte - a.bitsPerByte);
  output.table(
    [
      ["file", "bytes", "bits per byte"],
      ...worstFirst.slice(0, LISTED_FILES).map(rowOf),
      rowOf({ ...result, name: `all ${counted(documents.length, "document")}` }),
    ],
    ["left", "right", "right"],
  );
  output.result(jsonOf(result));
};

/** The sequences a run was trained on: then the figure is the one that training reports. */
function windowTokens(path: string): number {
  return isRunFolder(path) ? runSettings(path).data.sequenceLength : WINDOW_TOKENS;
}

async function readDocuments(paths: readonly string[]): Promise<EvaluatedDocument[]> {
  const corpus = await openCorpus({ paths, heldOutFraction: 0 });
  const documents: EvaluatedDocument[] = [];
  for await (const { path, text } of corpus.documents("train")) {
    documents.push({ name: path, text });
  }
  if (documents.length === 0) {
    throw new OperationalError(
      "data.missing",
      `${paths.join(", ")} holds no text; name files or folders of UTF-8 text with --data`,
    );
  }
  return documents;
}

function rowOf({
  name,
  bytes,
  bitsPerByte,
}: {
  readonly name: string;
  readonly bytes: number;
  readonly bitsPerByte: number;
}): string[] {
  return [name, bytes.toLocaleString("en"), bitsPerByte.toFixed(3)];
}

function jsonOf(result: BitsPerByteResult): unknown {
  const { bitsPerByte, bytes, tokens, documents } = result;
  return { bitsPerByte, bytes, tokens, documents };
}
