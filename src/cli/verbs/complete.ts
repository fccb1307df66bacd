/** @file `hadal complete`: continue a text, or fill the gap between two. */
import { readFileSync } from "node:fs";
import { counted } from "../../base/counted.ts";
import { OperationalError, reasonOf } from "../../base/errors.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { Decoder } from "../../inference/decoder.ts";
import { type Generation, generate } from "../../inference/generate.ts";
import { continuationPrompt, gapPrompt, type Prompt } from "../../inference/prompt.ts";
import { Session } from "../../inference/session.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { Values } from "../declaration.ts";
import type { complete } from "../declarations/complete.ts";
import { loadModel } from "../load-model.ts";
import type { Output } from "../output.ts";
import type { Run } from "../verb.ts";

/** Text around the place to write; without a suffix the model goes on. */
interface Place {
  readonly prefix: string;
  readonly suffix: string | undefined;
}

export const run: Run<typeof complete> = async (values, { output, interruption, env }) => {
  const place = placeOf(values);
  await using device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  const { model, tokenizer } = loadModel(device, values.model, values.weights);
  const capacity = model.config.maxPositionEmbeddings;
  const session = new Session(new Decoder(device, model), capacity);
  const prompt = promptOf(
    tokenizer,
    place,
    capacity - Math.min(values["max-tokens"], capacity / 2),
  );
  warnOfCuts(output, prompt, capacity);
  const signal = interruption.orderly();
  const start = performance.now();
  const generation = await generate(
    session,
    tokenizer,
    prompt.tokens,
    {
      sampling: {
        temperature: values.temperature,
        topK: values["top-k"],
        topP: values["top-p"],
        minP: values["min-p"],
      },
      stopStrings: values.stop,
      seed: values.seed,
      maxTokens: values["max-tokens"],
      healing: prompt.healing,
      signal,
    },
    (text) => output.text(text),
  );
  output.line();
  output.result(resultOf(generation, prompt, (performance.now() - start) / 1000));
};

function placeOf(values: Values<typeof complete>): Place {
  const { prefix, suffix, file, line } = values;
  if (file === undefined) {
    if (line !== undefined) {
      throw new OperationalError("usage.flags", "--line is a line of --file; name the file too");
    }
    if (prefix === undefined && suffix === undefined) {
      const missing =
        "give the text to continue, --prefix TEXT, or a line to write, --file F --line N";
      throw new OperationalError("usage.missing", missing);
    }
    return { prefix: prefix ?? "", suffix };
  }
  if (line === undefined) {
    throw new OperationalError("usage.flags", "--file needs --line N, the line to write");
  }
  return placeInFile(file, line);
}

/** What stands above line `line` and below it. */
function placeInFile(file: string, line: number): Place {
  const lines = readText(file).split("\n");
  if (line > lines.length) {
    throw new OperationalError(
      "usage.line",
      `--line ${line} is beyond the ${counted(lines.length, "line")} of ${file}`,
    );
  }
  const prefix = lines.slice(0, line - 1).map((text) => `${text}\n`);
  const suffix = lines.slice(line).map((text) => `\n${text}`);
  return { prefix: prefix.join(""), suffix: suffix.join("") };
}

function readText(file: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(file));
  } catch (cause) {
    throw new OperationalError(
      "data.unreadable",
      `${file} cannot be read: ${reasonOf(cause)}`,
      {},
      cause,
    );
  }
}

function promptOf(tokenizer: Tokenizer, place: Place, tokensMax: number): Prompt {
  const { prefix, suffix } = place;
  return suffix === undefined
    ? continuationPrompt(tokenizer, prefix, Math.floor(tokensMax))
    : gapPrompt(tokenizer, { prefix, suffix }, Math.floor(tokensMax));
}

function warnOfCuts(
  output: Output,
  { numPrefixCut, numSuffixCut }: Prompt,
  capacity: number,
): void {
  if (numPrefixCut + numSuffixCut === 0) return;
  output.warn(
    `the context takes ${capacity} tokens: the first ${numPrefixCut} of the prefix and the last ` +
      `${numSuffixCut} of the suffix were left out`,
  );
}

function resultOf(generation: Generation, prompt: Prompt, seconds: number): unknown {
  const { text, tokens, reason } = generation;
  return {
    text,
    reason,
    promptTokens: prompt.tokens.length + (prompt.healing?.numTokens ?? 0),
    tokens: tokens.length,
    seconds,
    tokensPerSecond: tokens.length / seconds,
  };
}
