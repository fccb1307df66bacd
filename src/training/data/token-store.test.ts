/** @file The token cache: exact contents, one tokenisation, damage noticed. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { randomText } from "../../../test/support/random-text.ts";
import { Random } from "../../base/random.ts";
import { trainBpe } from "../../tokenizer/bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import { type Corpus, openCorpus } from "./corpus.ts";
import { openTokenStore, type TokenStore } from "./token-store.ts";

const root = mkdtempSync(join(tmpdir(), "hadal-store-"));
after(() => rmSync(root, { recursive: true }));
const data = join(root, "data");
const folder = join(root, "cache");
mkdirSync(data);
const random = new Random(4, "store");
for (let i = 0; i < 40; i++) writeFileSync(join(data, `${i}.txt`), randomText(random, 1 + i * 3));
const corpus = await openCorpus({ paths: [data], heldOutFraction: 0.1 });
const texts = await corpus.sampleTexts(Infinity);
const tokenizer = new Tokenizer(
  learnedVocabulary(trainBpe(texts, { vocabSize: 600, numAddedTokens: 9 })),
);

/** Opens the training side and says whether it was tokenised now. */
async function open(
  tokenizerUsed = tokenizer,
  corpusUsed: Corpus = corpus,
): Promise<{ store: TokenStore; wasMade: boolean }> {
  let numReports = 0;
  const onProgress = (): void => void numReports++;
  const options = { folder, corpus: corpusUsed, tokenizer: tokenizerUsed, onProgress };
  const store = await openTokenStore({ ...options, split: "train" });
  return { store, wasMade: numReports > 0 };
}

function checkContents(store: TokenStore, tokenizerUsed = tokenizer): void {
  assert.equal(store.numDocuments, texts.length);
  let [numTokens, bytes] = [0, 0];
  for (const [document, text] of texts.entries()) {
    const expected = tokenizerUsed.encode(text);
    assert.equal(store.documentTokens(document), expected.length);
    assert.deepEqual(store.read(document, 0, expected.length), expected);
    const half = expected.length >> 1;
    assert.deepEqual(
      store.read(document, half, expected.length - half),
      expected.subarray(half),
      `document ${document} from its middle`,
    );
    numTokens += expected.length;
    bytes += Buffer.byteLength(text);
  }
  assert.equal(store.numTokens, numTokens);
  assert.equal(store.numTextBytes, bytes);
}

test("a store has the tokens of every document, and the second time is only opened", async () => {
  const first = await open();
  assert.equal(first.wasMade, true);
  checkContents(first.store);
  first.store[Symbol.dispose]();
  const second = await open();
  assert.equal(second.wasMade, false);
  using store = second.store;
  checkContents(store);
  assert.ok(readdirSync(folder).every((name) => name.endsWith(".tokens")));
});

test("another tokenizer, other contents or the other side make another store", async () => {
  const merges = trainBpe(texts, { vocabSize: 500, numAddedTokens: 9 });
  using other = (await open(new Tokenizer(learnedVocabulary(merges)))).store;
  writeFileSync(join(data, "new.txt"), "new");
  using grown = (await open(tokenizer, await openCorpus({ paths: [data], heldOutFraction: 0.1 })))
    .store;
  using heldOut = await openTokenStore({ folder, corpus, tokenizer, split: "heldOut" });
  using same = (await open()).store;
  const paths = [other, grown, heldOut, same].map((store) => store.path);
  assert.equal(new Set(paths).size, 4);
  rmSync(join(data, "new.txt"));
});

test("vocabularies beyond 65,536 ids keep four bytes a token", async () => {
  const { vocabulary } = tokenizer;
  const tokenBytes = [...vocabulary.tokenBytes];
  tokenBytes[70_000] = undefined;
  const merged = vocabulary.merged.slice();
  // The first merge's token moves to a high id, and so do the merges that use it.
  const [from, to] = [merged[0]!, 69_999];
  const moved = (ids: Int32Array): Int32Array => ids.map((id) => (id === from ? to : id));
  tokenBytes[to] = tokenBytes[from];
  tokenBytes[from] = undefined;
  const sides = { left: moved(vocabulary.left), right: moved(vocabulary.right) };
  const large = new Tokenizer({ ...vocabulary, ...sides, merged: moved(merged), tokenBytes });
  using store = (await open(large)).store;
  checkContents(store, large);
  assert.ok(texts.some((text) => large.encode(text).includes(to)));
});

test("a damaged, shortened or foreign store is made anew", async () => {
  const { store } = await open();
  store[Symbol.dispose]();
  const whole = readFileSync(store.path);
  const damage: [string, (bytes: Buffer) => Buffer][] = [
    ["shortened", (bytes) => bytes.subarray(0, bytes.length - 8)],
    ["lengthened", (bytes) => Buffer.concat([bytes, Buffer.alloc(8)])],
    ["empty", () => Buffer.alloc(0)],
    ["another magic", (bytes) => Buffer.concat([Buffer.from("X"), bytes.subarray(1)])],
    ["another byte order", (bytes) => bytes.fill(Uint8Array.of(1, 2, 3, 4), 8, 12)],
    ["another key", (bytes) => bytes.fill(7, 40, 72)],
    ["wild counts", (bytes) => bytes.fill(0x7f, 16, 24)],
    ["wild starts", (bytes) => bytes.fill(0x41, bytes.length - 8)],
  ];
  for (const [name, change] of damage) {
    writeFileSync(store.path, change(Buffer.from(whole)));
    const again = await open();
    assert.equal(again.wasMade, true, name);
    checkContents(again.store);
    again.store[Symbol.dispose]();
    assert.deepEqual(readFileSync(store.path), whole, name);
  }
});
