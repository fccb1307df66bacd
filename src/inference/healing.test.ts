/**
 * @file Healing: wherever a text is cut, a model that knows it goes on as if it had not been cut.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../base/random.ts";
import { trainBpe } from "../tokenizer/bpe-train.ts";
import { fimPrompt } from "../tokenizer/fim.ts";
import { learnedVocabulary, Tokenizer } from "../tokenizer/tokenizer.ts";
import { type GenerateOptions, generate, type LogitSource } from "./generate.ts";
import { type Healing, HealingState, healingOf } from "./healing.ts";
import { continuationPrompt, gapPrompt, type Prompt } from "./prompt.ts";
import { GREEDY } from "./sampler.ts";

const CODE = [
  "export function count(texts: readonly string[]): number {\n",
  "    // größer als 日本語 😀 und so weiter; größer als 日本 😀\n",
  "    for (const text of texts) {\n        total += text.length;\n    }\n",
  "    return total;\n}\n",
].join("");
const tokenizer = new Tokenizer(
  learnedVocabulary(trainBpe([CODE.repeat(3)], { vocabSize: 9 + 256 + 90, numAddedTokens: 9 })),
);
const OPTIONS: GenerateOptions = { sampling: GREEDY, seed: 1, maxTokens: 400 };

/**
 * A model that has learned the sequence `known` and nothing else: where it has read a beginning of
 * it, the next token is the likeliest, and elsewhere tokens come as they are numbered.
 */
function knowing(known: Int32Array): LogitSource {
  let read: number[] = [];
  const logits = (): Float32Array => {
    const row = Float32Array.from({ length: tokenizer.vocabSize }, (_, token) => -token / 1000);
    const knows = read.every((token, index) => token === known[index]);
    row[(knows ? known[read.length] : undefined) ?? tokenizer.eosId] = 5;
    return row;
  };
  return {
    contextTokens: 1000,
    keepCommon: () => 0,
    read: async (tokens) => {
      read = [...tokens];
      return logits();
    },
    append: (token) => {
      read.push(token);
      return logits();
    },
  };
}

function complete(known: Int32Array, { tokens, healing }: Prompt, maxTokens = 400) {
  return generate(knowing(known), tokenizer, tokens, { ...OPTIONS, healing, maxTokens });
}

const characters = [...CODE];

describe("healing", () => {
  it("goes on with the known text wherever it was cut, inside words, spaces and all", async () => {
    const known = Int32Array.from([tokenizer.bosId, ...tokenizer.encode(CODE), tokenizer.eosId]);
    for (let cut = 0; cut <= characters.length; cut++) {
      const prefix = characters.slice(0, cut).join("");
      const rest = characters.slice(cut).join("");
      const { text, reason } = await complete(known, continuationPrompt(tokenizer, prefix, 900));
      assert.deepEqual([text, reason], [rest, "end"], JSON.stringify(prefix.slice(-12)));
    }
  });

  it("says more than a prompt that was not healed, and the same where tokens end", async () => {
    const known = Int32Array.from([tokenizer.bosId, ...tokenizer.encode(CODE), tokenizer.eosId]);
    const prefix = CODE.slice(0, CODE.indexOf("unction"));
    const broken = [tokenizer.bosId, ...tokenizer.encode(prefix)];
    const unhealed = await generate(knowing(known), tokenizer, Int32Array.from(broken), OPTIONS);
    assert.notEqual(unhealed.text, CODE.slice(prefix.length));
    const healed = await complete(known, continuationPrompt(tokenizer, prefix, 900));
    assert.equal(healed.text, CODE.slice(prefix.length));
  });

  it("heals the prefix of a gap", async () => {
    for (const cut of [CODE.indexOf("eadonly"), CODE.indexOf("text of"), CODE.indexOf("語")]) {
      const middle = CODE.slice(0, CODE.indexOf("return"));
      const prefix = CODE.slice(0, cut);
      const suffix = CODE.slice(middle.length);
      const gap = gapPrompt(tokenizer, { prefix, suffix }, 900);
      const whole = gapPrompt(tokenizer, { prefix: "", suffix }, 900).tokens;
      const numKept = gap.tokens.length - whole.length;
      const encoded = tokenizer.encode(middle);
      // What the gap's beginning would be if it began where the kept tokens end.
      const known = [...gap.tokens, ...encoded.subarray(numKept), tokenizer.eosId];
      assert.deepEqual(gap.tokens.subarray(2, 2 + numKept), encoded.subarray(0, numKept));
      const { text } = await complete(Int32Array.from(known), gap);
      assert.equal(text, middle.slice(cut));
      assert.equal(
        gap.tokens.length + gap.healing!.numTokens,
        fimPrompt(tokenizer, { prefix, suffix }).length,
      );
    }
  });

  it("counts and reports only tokens that say something new", async () => {
    const known = Int32Array.from([tokenizer.bosId, ...tokenizer.encode(CODE), tokenizer.eosId]);
    const prefix = CODE.slice(0, CODE.indexOf("(const"));
    const prompt = continuationPrompt(tokenizer, prefix, 900);
    assert.ok(prompt.healing !== null);
    const { tokens, logProbabilities, reason, text } = await complete(known, prompt, 3);
    assert.deepEqual([tokens.length, logProbabilities.length, reason], [3, 3, "length"]);
    assert.ok(CODE.slice(prefix.length).startsWith(text) && text !== "");
    assert.ok(logProbabilities.every((value) => value < 0 && value > -3));
  });

  it("leaves out whole tokens, and never more than were looked at", () => {
    const random = new Random(20261130, "healing");
    const texts = ["abc".repeat(400), " ".repeat(1000), "日本語".repeat(200), "x", ""];
    for (let round = 0; round < 200; round++) {
      const start = random.below(CODE.length - 1);
      texts.push(CODE.slice(start, start + 1 + random.below(40)));
    }
    for (const [round, text] of texts.entries()) {
      const tokens = tokenizer.encode(text.toWellFormed());
      const healing = healingOf(tokenizer, tokens);
      if (healing === null) continue;
      const left = tokens.subarray(tokens.length - healing.numTokens);
      const spelled = [...left].flatMap((token) => [...tokenizer.tokenBytes(token)]);
      assert.deepEqual([...healing.bytes], spelled, `seed 20261130, round ${round}`);
      assert.ok(healing.numTokens <= 128);
    }
  });

  it("allows exactly the tokens that spell what is left, and added tokens never", () => {
    const bytes = new TextEncoder().encode(" tot");
    const healing: Healing = { bytes, numTokens: 1 };
    const state = new HealingState(tokenizer, healing);
    const logits = new Float32Array(tokenizer.vocabSize);
    state.maskOut(logits);
    const allowed = [...logits.keys()].filter((token) => logits[token] === 0);
    const texts = allowed.map((token) => tokenizer.decode([token]));
    assert.ok(
      texts.every((text) => text !== "" && (" tot".startsWith(text) || text.startsWith(" tot"))),
    );
    assert.ok(texts.includes(" ") && texts.includes(" total"), texts.join("|"));
    assert.equal(state.accept(allowed[texts.indexOf(" ")]!), 1);
    assert.throws(() => state.accept(allowed[texts.indexOf(" ")]!), /does not spell/);
    assert.equal(state.isDone, false);
  });
});
