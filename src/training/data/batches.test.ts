/** @file Packing, fill in the middle, shuffling and exact resumption. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { randomText } from "../../../test/support/random-text.ts";
import { OperationalError } from "../../base/errors.ts";
import { Random } from "../../base/random.ts";
import { trainBpe } from "../../tokenizer/bpe-train.ts";
import { SPECIAL_TOKENS } from "../../tokenizer/special-tokens.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import { BatchLoader, type BatchOptions, type LoaderState } from "./batches.ts";
import { CutRules, cutIntoSpans } from "./spans.ts";
import type { TokenSource } from "./token-source.ts";

const source = new Random(8, "batches");
const texts = Array.from({ length: 60 }, (_, i) => randomText(source, i % 7 === 0 ? 400 : 1 + i));
const tokenizer = new Tokenizer(
  learnedVocabulary(trainBpe(texts, { vocabSize: 700, numAddedTokens: 9 })),
);

function tokensOf(documents: readonly string[]): TokenSource {
  const ids = documents.map((text) => tokenizer.encode(text));
  return {
    numDocuments: ids.length,
    documentTokens: (document) => ids[document]!.length,
    read: (document, start, count) => {
      assert.ok(start >= 0 && start + count <= ids[document]!.length);
      return ids[document]!.slice(start, start + count);
    },
  };
}

const corpus = tokensOf([...texts, ""]);
const WHOLE: BatchOptions = {
  seqLength: 32,
  lookahead: 1,
  spanTokensMax: Infinity,
  fimRate: 0,
  fimTokensMax: Infinity,
  seed: 17,
};

/** The stream itself: what the first tokens of consecutive sequences join to. */
function streamOf(loader: BatchLoader, numTokens: number, seqLength: number): number[] {
  const out: number[] = [];
  while (out.length < numTokens) {
    const { tokens } = loader.next(1);
    out.push(...tokens.subarray(0, seqLength));
  }
  return out.slice(0, numTokens);
}

/** The frames of a stream: cut before each begin of sentence. */
function framesOf(stream: readonly number[]): string[] {
  return tokenizer.decode(stream).split(SPECIAL_TOKENS.bos).slice(1);
}

test("an epoch has each document once, between begin and end of sentence, shuffled", () => {
  const numTokens = texts.reduce((sum, text) => sum + tokenizer.encode(text).length + 2, 0);
  const loader = new BatchLoader(corpus, tokenizer, WHOLE);
  const stream = streamOf(loader, 2 * numTokens, 32);
  const [first, second] = [framesOf(stream.slice(0, numTokens)), framesOf(stream.slice(numTokens))];
  const expected = texts.map((text) => text + SPECIAL_TOKENS.eos);
  const joined = (frames: readonly string[]): string => frames.join("\0");
  assert.ok(joined(first.toSorted()) === joined(expected.toSorted()), "first epoch");
  assert.ok(joined(second.toSorted()) === joined(expected.toSorted()), "second epoch");
  assert.ok(joined(first) !== joined(expected), "the order is shuffled");
  assert.ok(joined(first) !== joined(second), "and shuffled anew");
});

test("sequences share the lookahead and nothing else", () => {
  for (const lookahead of [1, 2, 4]) {
    const options = { ...WHOLE, lookahead, fimRate: 0.3, spanTokensMax: 40, fimTokensMax: 20 };
    const { tokens, width } = new BatchLoader(corpus, tokenizer, options).next(200);
    assert.equal(width, 32 + lookahead);
    for (let s = 0; s + 1 < 200; s++) {
      const tail = tokens.subarray(s * width + 32, (s + 1) * width);
      const head = tokens.subarray((s + 1) * width, (s + 1) * width + lookahead);
      assert.deepEqual(tail, head, `sequence ${s}`);
    }
  }
});

test("the lookahead may be longer than many documents", () => {
  const options = { ...WHOLE, seqLength: 2, lookahead: 9 };
  const stream = streamOf(new BatchLoader(tokensOf(["a", "b", "c"]), tokenizer, options), 60, 2);
  const { tokens } = new BatchLoader(tokensOf(["a", "b", "c"]), tokenizer, options).next(10);
  for (let s = 0; s < 10; s++) {
    assert.deepEqual([...tokens.subarray(s * 11, s * 11 + 11)], stream.slice(s * 2, s * 2 + 11));
  }
});

test("spans join to their documents and are no longer than asked", () => {
  const rules = new CutRules(tokenizer);
  for (const tokensMax of [8, 13, 50, 300]) {
    const spans = cutIntoSpans(corpus, rules, tokensMax);
    const numTaken = new Array<number>(corpus.numDocuments).fill(0);
    for (let i = 0; i < spans.document.length; i++) {
      const document = spans.document[i]!;
      assert.equal(spans.start[i], numTaken[document], `span ${i} of at most ${tokensMax}`);
      assert.ok(spans.count[i]! >= 1 && spans.count[i]! <= tokensMax, `${spans.count[i]} tokens`);
      numTaken[document] = numTaken[document]! + spans.count[i]!;
    }
    assert.deepEqual(
      numTaken,
      numTaken.map((_, document) => corpus.documentTokens(document)),
    );
  }
});

test("spans begin and end between characters", () => {
  const text = "日本語のテキスト、häufig ünd öde — 中文汉字𠀀𠀁𠀂".repeat(20);
  const documents = tokensOf([text]);
  for (const tokensMax of [8, 30, 100]) {
    const spans = cutIntoSpans(documents, new CutRules(tokenizer), tokensMax);
    for (let i = 0; i < spans.document.length; i++) {
      const span = tokenizer.decode(documents.read(0, spans.start[i]!, spans.count[i]!));
      assert.ok(!span.includes("\ufffd"), `span ${i} of at most ${tokensMax}: ${span}`);
    }
  }
});

test("tokens that begin and end inside characters never put a gap into one", () => {
  // 😀 is F0 9F 98 80; with the tokens 80 F0 and 9F 98 none in a row of them begins a character.
  const left = Int32Array.of(9 + 0x80, 9 + 0x9f);
  const right = Int32Array.of(9 + 0xf0, 9 + 0x98);
  const crossing = new Tokenizer(learnedVocabulary({ left, right }));
  const ids = crossing.encode("😀".repeat(400));
  assert.equal(ids.length, 801);
  const documents: TokenSource = {
    numDocuments: 1,
    documentTokens: () => ids.length,
    read: (_, start, count) => ids.slice(start, start + count),
  };
  const options = { ...WHOLE, fimRate: 1, spanTokensMax: 100, fimTokensMax: 50 };
  const { tokens } = new BatchLoader(documents, crossing, options).next(100);
  const stream = crossing.decode(tokens.filter((_, i) => i % 33 < 32));
  for (const frame of stream.split(SPECIAL_TOKENS.fimBegin).slice(1, -1)) {
    const filled = frame.split(SPECIAL_TOKENS.eos)[0]!;
    assert.ok(!filled.includes("\ufffd"), filled);
  }
});

test("spans end with lines where lines are near", () => {
  const text = "const value = 1;\n".repeat(500);
  const spans = cutIntoSpans(tokensOf([text]), new CutRules(tokenizer), 200);
  const source = tokensOf([text]);
  for (let i = 0; i < spans.document.length; i++) {
    assert.match(
      tokenizer.decode(source.read(0, spans.start[i]!, spans.count[i]!)),
      /^const.*\n$/s,
    );
  }
});

test("a cut document has a begin at each span and an end only where it ends", () => {
  const options = { ...WHOLE, spanTokensMax: 16 };
  const text = "words and more words, ".repeat(30);
  const loader = new BatchLoader(tokensOf([text]), tokenizer, options);
  const numTokens = tokenizer.encode(text).length + loader.numSpans + 1;
  const stream = streamOf(loader, numTokens, 32);
  assert.equal(stream.filter((id) => id === tokenizer.bosId).length, loader.numSpans);
  assert.equal(stream.filter((id) => id === tokenizer.eosId).length, 1);
  assert.ok(loader.numSpans > 5);
});

const FIM_FRAME = new RegExp(
  [
    `^${SPECIAL_TOKENS.fimBegin}(.*)${SPECIAL_TOKENS.fimHole}(.*)`,
    `${SPECIAL_TOKENS.fimEnd}(.*)${SPECIAL_TOKENS.eos}$`,
  ].join(""),
  "s",
);

test("a fill-in-the-middle frame is its document with the gap moved to the end", () => {
  const documents = Array.from({ length: 80 }, (_, i) => `${i}: é😀 ${"words ".repeat(i % 9)}`);
  const loader = new BatchLoader(tokensOf(documents), tokenizer, { ...WHOLE, fimRate: 1 });
  const frames = framesOf(streamOf(loader, 8000, 32)).slice(0, documents.length);
  const joined = frames.map((frame) => {
    const [, prefix, suffix, middle] = FIM_FRAME.exec(frame) as unknown as string[];
    return `${prefix}${middle}${suffix}`;
  });
  assert.deepEqual(joined.toSorted(), documents.toSorted());
});

test("gaps begin and end at any character, inside words too, and never inside a character", () => {
  const text = "abcdefgh😀ijklmnop";
  const loader = new BatchLoader(tokensOf([text]), tokenizer, { ...WHOLE, fimRate: 1 });
  const cuts = new Set<string>();
  for (const frame of framesOf(streamOf(loader, 9000, 32)).slice(0, 250)) {
    const [, prefix, suffix, middle] = FIM_FRAME.exec(frame) as unknown as string[];
    assert.equal(`${prefix}${middle}${suffix}`, text);
    cuts.add(`${prefix!.length} ${middle!.length}`);
  }
  assert.ok(cuts.size > 60, `${cuts.size} different gaps`);
});

test("the share of spans with a gap is the rate, and changes with the epoch", () => {
  const many = tokensOf(Array.from({ length: 1000 }, (_, i) => `document number ${i}`));
  const loader = new BatchLoader(many, tokenizer, { ...WHOLE, fimRate: 0.1 });
  const gaps: string[][] = [[], []];
  for (const [i, frame] of framesOf(streamOf(loader, 40_000, 32))
    .slice(0, 2000)
    .entries()) {
    const parts = FIM_FRAME.exec(frame);
    if (parts !== null) gaps[i < 1000 ? 0 : 1]!.push(parts[1]! + parts[3]! + parts[2]!);
  }
  for (const documents of gaps) {
    assert.ok(documents.length > 70 && documents.length < 130, `${documents.length} of 1000`);
  }
  assert.notDeepEqual(gaps[0]!.toSorted(), gaps[1]!.toSorted());
});

test("long spans are cut before gaps are made", () => {
  const options = { ...WHOLE, fimRate: 1, fimTokensMax: 20 };
  const loader = new BatchLoader(tokensOf(["some words here. ".repeat(60)]), tokenizer, options);
  for (const frame of framesOf(streamOf(loader, 3000, 32)).slice(0, -1)) {
    assert.match(frame, FIM_FRAME);
    assert.ok(frame.length < 300, `${frame.length} characters`);
  }
});

test("a restored loader gives the batches that would have followed, whatever their sizes", () => {
  for (let seed = 0; seed < 60; seed++) {
    const random = new Random(seed, "resume");
    const options: BatchOptions = {
      seqLength: 1 + random.below(60),
      lookahead: 1 + random.below(3),
      spanTokensMax: random.below(2) === 0 ? Infinity : 8 + random.below(100),
      fimRate: random.below(3) / 4,
      fimTokensMax: random.below(2) === 0 ? Infinity : 8 + random.below(40),
      seed: random.below(1000),
    };
    const loader = new BatchLoader(corpus, tokenizer, options);
    const numBefore = random.below(20);
    for (let i = 0; i < numBefore; i++) loader.next(1 + random.below(40));
    const saved = JSON.parse(JSON.stringify(loader.state)) as LoaderState;
    const sizes = Array.from({ length: 8 }, () => 1 + random.below(30));
    const expected = sizes.map((size) => loader.next(size));
    const resumed = new BatchLoader(corpus, tokenizer, options);
    resumed.restore(saved);
    assert.deepEqual(
      sizes.map((size) => resumed.next(size)),
      expected,
      `seed ${seed}, ${JSON.stringify(saved)}`,
    );
    assert.deepEqual(resumed.state, loader.state, `seed ${seed}`);
  }
});

test("how the stream is cut into batches does not change it", () => {
  const options = { ...WHOLE, fimRate: 0.2, spanTokensMax: 64, fimTokensMax: 32 };
  const one = new BatchLoader(corpus, tokenizer, options).next(96);
  const loader = new BatchLoader(corpus, tokenizer, options);
  const parts = [1, 2, 4, 8, 16, 32, 33].flatMap((size) => [...loader.next(size).tokens]);
  assert.deepEqual(parts, [...one.tokens]);
});

test("seeds give different streams, and the same seed the same", () => {
  const first = (seed: number): number[] => [
    ...new BatchLoader(corpus, tokenizer, { ...WHOLE, seed }).next(20).tokens,
  ];
  assert.deepEqual(first(1), first(1));
  assert.notDeepEqual(first(1), first(2));
});

test("a state of another corpus, or a damaged one, is refused", () => {
  const loader = new BatchLoader(corpus, tokenizer, WHOLE);
  const good = loader.state;
  for (const change of [
    { numSpans: 5 },
    { place: 60 },
    { place: -1 },
    { offset: 1e6 },
    { epoch: 0.5 },
  ]) {
    assert.throws(
      () => loader.restore({ ...good, ...change }),
      (error) => error instanceof OperationalError && error.code === "data.loaderState",
      JSON.stringify(change),
    );
  }
  loader.restore(good);
});

test("a corpus without tokens, and gaps without markers, are refused", () => {
  assert.throws(
    () => new BatchLoader(tokensOf(["", ""]), tokenizer, WHOLE),
    (error) => error instanceof OperationalError && error.code === "data.empty",
  );
  const { vocabulary } = tokenizer;
  const plain = new Tokenizer({ ...vocabulary, addedTokens: vocabulary.addedTokens.slice(0, 2) });
  assert.throws(
    () => new BatchLoader(corpus, plain, { ...WHOLE, fimRate: 0.1 }),
    (error) => error instanceof OperationalError && error.code === "config.fimRate",
  );
});
