/** @file The trained model at work on held-out files: what it writes beside what stands there. */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { Decoder } from "../../inference/decoder.ts";
import { generate } from "../../inference/generate.ts";
import { continuationPrompt, gapPrompt, type Prompt } from "../../inference/prompt.ts";
import { GREEDY } from "../../inference/sampler.ts";
import { Session } from "../../inference/session.ts";
import { loadModel } from "../load-model.ts";
import type { Output } from "../output.ts";
import { chooseCommentExamples, chooseGapExamples } from "./examples.ts";

const EXAMPLES = 5;
/** Prompt and answer together: about what a sequence of training held. */
const CONTEXT_TOKENS = 256;
const ANSWER_TOKENS = 48;
const SEED = 1;

/** Print completions of comments and gaps by the last checkpoint of `run`. */
export async function showCompletions(
  output: Output,
  device: Device,
  { run, heldOut }: { readonly run: string; readonly heldOut: readonly string[] },
): Promise<void> {
  const { model, tokenizer } = loadModel(device, run);
  const session = new Session(new Decoder(device, model, CONTEXT_TOKENS), CONTEXT_TOKENS);
  const room = CONTEXT_TOKENS - ANSWER_TOKENS;
  const answer = async ({ tokens, healing }: Prompt): Promise<string> => {
    const options = {
      sampling: GREEDY,
      seed: SEED,
      maxTokens: ANSWER_TOKENS,
      stopStrings: ["\n"],
      healing,
    };
    return (await generate(session, tokenizer, tokens, options)).text;
  };
  const comments = chooseCommentExamples(heldOut, EXAMPLES, new Random(SEED, "comments"));
  heading(output, comments.length, "a comment from a held-out file, and the declaration after it");
  for (const { prefix, comment, truth } of comments) {
    const text = await answer(continuationPrompt(tokenizer, prefix, room));
    output.line(output.style("dim", comment.replaceAll(/\n\s*/g, "\n ")));
    pair(output, text, truth);
  }
  const gaps = chooseGapExamples(heldOut, EXAMPLES, new Random(SEED, "gaps"));
  heading(output, gaps.length, "a gap in a line of a held-out file");
  for (const { prefix, suffix, truth } of gaps) {
    const text = await answer(gapPrompt(tokenizer, { prefix, suffix }, room));
    output.line(
      output.style("dim", `${prefix.slice(prefix.lastIndexOf("\n") + 1).trimStart()} ▁▁▁`),
    );
    pair(output, text, truth);
  }
}

function heading(output: Output, count: number, text: string): void {
  if (count === 0) return;
  output.line();
  output.line(output.style("bold", text));
}

function pair(output: Output, text: string, truth: string): void {
  output.line(`  model: ${output.style("cyan", text.trim())}`);
  output.line(`  file:  ${truth.trim()}`);
  output.line();
}
