/** @file Completions of fixed prompts while a model is trained: samples.jsonl. */
import { floorDiv } from "../base/integers.ts";
import type { Device } from "../device/device.ts";
import { Decoder } from "../inference/decoder.ts";
import { generate } from "../inference/generate.ts";
import { continuationPrompt } from "../inference/prompt.ts";
import { GREEDY } from "../inference/sampler.ts";
import { Session } from "../inference/session.ts";
import type { Sample, SampleContext } from "../training/run/train-run.ts";

/** Writes greedy completions by the model in training; one cache serves all steps. */
export function sampleWriter(device: Device): (context: SampleContext) => Promise<Sample[]> {
  let session: Session | undefined;
  return async ({ model, tokenizer, prompts, tokensMax }) => {
    session ??= new Session(new Decoder(device, model), model.config.maxPositionEmbeddings);
    const samples: Sample[] = [];
    for (const prompt of prompts) {
      // The parameters have changed since the last time: nothing cached is worth keeping.
      session.clear();
      // A sample that would fill the context leaves half of it to its prompt.
      const { contextTokens } = session;
      const room = Math.max(floorDiv(contextTokens, 2), contextTokens - tokensMax);
      const { tokens, healing } = continuationPrompt(tokenizer, prompt, room);
      const options = { sampling: GREEDY, seed: 0, maxTokens: tokensMax, healing };
      const { text } = await generate(session, tokenizer, tokens, options);
      samples.push({ prompt, text });
    }
    return samples;
  };
}
