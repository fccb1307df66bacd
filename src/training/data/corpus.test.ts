/**
 * @file Reading folders and files: what is taken, what is skipped and counted, what is held out.
 */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { gzipSync } from "node:zlib";
import { OperationalError } from "../../base/errors.ts";
import { Random } from "../../base/random.ts";
import { type Corpus, type CorpusOptions, openCorpus } from "./corpus.ts";
import type { Split } from "./hold-out.ts";

const folder = mkdtempSync(join(tmpdir(), "hadal-corpus-"));
after(() => rmSync(folder, { recursive: true }));
let numTrees = 0;

/** A new folder with these files. */
function tree(files: Readonly<Record<string, string | Uint8Array>>): string {
  const root = join(folder, `${numTrees++}`, "data");
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), content);
  }
  return root;
}

async function textsOf(corpus: Corpus, split: Split = "train"): Promise<string[]> {
  const texts: string[] = [];
  for await (const { text, bytes } of corpus.documents(split)) {
    assert.equal(bytes, Buffer.byteLength(text));
    texts.push(text);
  }
  return texts;
}

function open(root: string, options: Partial<CorpusOptions> = {}): Promise<Corpus> {
  return openCorpus({ paths: [root], heldOutFraction: 0, ...options });
}

const code = (expected: string) => (error: unknown) =>
  error instanceof OperationalError && error.code === expected;

test("a folder is read in the order of its names, folders among files", async () => {
  const files = { "b.txt": "b", "a/z": "az", "a/B": "aB", "a.txt": "a.", "Z.md": "Z", é: "é" };
  assert.deepEqual(await textsOf(await open(tree(files))), ["Z", "aB", "az", "a.", "b", "é"]);
});

test("what is no text is skipped and counted", async () => {
  const corpus = await open(
    tree({
      "good.txt": "good",
      "zero.bin": Uint8Array.of(65, 0, 66),
      "latin1.txt": Uint8Array.of(0x63, 0xe9, 0x0a),
      "overlong.txt": Uint8Array.of(0xc0, 0xaf),
      "surrogate.txt": Uint8Array.of(0xed, 0xa0, 0x80),
      "cut.txt": Uint8Array.of(0xe2, 0x82),
      "empty.txt": "",
      "broken.txt.gz": gzipSync("x".repeat(9999)).subarray(0, 20),
    }),
  );
  assert.deepEqual(corpus.report, {
    files: 1,
    documents: 1,
    bytes: 4,
    skippedBinary: 1,
    skippedInvalidUtf8: 4,
    skippedEmpty: 1,
    skippedUnreadable: 1,
    skippedIgnored: 0,
    skippedLines: 0,
  });
});

test("a character across two chunks of a file is valid, a byte order mark is dropped", async () => {
  const text = `${"x".repeat(2 ** 18 - 1)}€${"y".repeat(2 ** 18)}`;
  const corpus = await open(tree({ a: text, b: "\ufeffmark" }));
  assert.deepEqual(await textsOf(corpus), [text, "mark"]);
});

test("jsonl gives its text fields; bad lines are counted and left out", async () => {
  const lines = [
    '{"text":"one"}',
    "",
    "not json",
    '{"text":5}',
    '{"other":"x"}',
    "null",
    '{"text":""}',
    '{"text":"two\\n","id":2}\r',
    `{"text":"${"long".repeat(100)}"}`,
  ];
  const bytes = Buffer.concat([
    Buffer.from(`${lines.join("\n")}\n`),
    Buffer.from([0x22, 0xff, 0x22, 0x0a]),
    Buffer.from('{"text":"last without a line end"}'),
  ]);
  for (const [name, content] of [
    ["a.jsonl", bytes] as const,
    ["a.JSONL.gz", gzipSync(bytes)] as const,
  ]) {
    const corpus = await open(tree({ [name]: content }), { documentBytesMax: 100 });
    assert.deepEqual(await textsOf(corpus), ["one", "two\n", "last without a line end"]);
    assert.equal(corpus.report.skippedLines, 6, name);
    assert.equal(corpus.report.documents, 3);
  }
});

test("a compressed text is read as its content", async () => {
  const corpus = await open(tree({ "a.txt.gz": gzipSync("hello é") }));
  assert.deepEqual(await textsOf(corpus), ["hello é"]);
});

test("a long text is cut after lines, else between characters, losing nothing", async () => {
  for (const documentBytesMax of [4, 7, 50, 4000]) {
    for (const unit of ["line of text\n", "é", "😀", "a", "\n"]) {
      const text = unit.repeat(600);
      const documents = await textsOf(await open(tree({ a: text }), { documentBytesMax }));
      assert.equal(documents.join(""), text);
      for (const part of documents) assert.ok(Buffer.byteLength(part) <= documentBytesMax);
      if (unit.length <= 2 || documentBytesMax < 13) continue;
      assert.ok(documents.every((part) => part.endsWith("\n")));
    }
  }
});

test(".gitignore files count from their folder down, the nearest rule wins", async () => {
  const corpus = await open(
    tree({
      ".gitignore": "*.log\nbuild/\n/top.txt\n!keep.log\n",
      "a.txt": "a",
      "x.log": "no",
      "keep.log": "keep",
      "top.txt": "no",
      "build/out.txt": "no",
      "sub/.gitignore": "*.txt\n!special.log\n",
      "sub/top.txt": "no",
      "sub/b.md": "b",
      "sub/special.log": "special",
      "sub/deep/y.log": "no",
      "sub/deep/top.md": "deep",
    }),
  );
  const texts = await textsOf(corpus);
  assert.deepEqual(
    texts.filter((text) => !text.includes("\n")),
    ["a", "keep", "b", "deep", "special"],
  );
  assert.equal(corpus.report.skippedIgnored, 5);
});

test(".git and node_modules are skipped unless they are the root", async () => {
  const root = tree({
    ".git/config": "no",
    "node_modules/m/a": "m",
    "src/node_modules/b": "n",
    c: "c",
  });
  assert.deepEqual(await textsOf(await open(root)), ["c"]);
  assert.deepEqual(await textsOf(await open(join(root, "node_modules"))), ["m"]);
});

test("only names with the wanted endings are taken", async () => {
  const root = tree({ "a.d.ts": "a", "b.ts": "b", "c/d.md": "d", "e.js": "e" });
  const corpus = await open(root, { nameEndings: [".d.ts", ".md"] });
  assert.deepEqual(await textsOf(corpus), ["a", "d"]);
});

test("links are followed, loops and second ways to a file are not", async () => {
  const root = tree({ "a/one": "1", "b/two": "2" });
  symlinkSync(root, join(root, "a", "loop"));
  symlinkSync(join(root, "b"), join(root, "a", "to-b"));
  symlinkSync(join(root, "gone"), join(root, "dangling"));
  const corpus = await openCorpus({ paths: [root, join(root, "b", "two")], heldOutFraction: 0 });
  assert.deepEqual(await textsOf(corpus), ["1", "2"]);
  assert.equal(corpus.report.skippedUnreadable, 1);
});

test("a missing path and a corpus without text are refused", async () => {
  await assert.rejects(open(join(folder, "nowhere")), code("data.missing"));
  await assert.rejects(open(tree({ "a.bin": Uint8Array.of(0), "b.txt": "" })), code("data.empty"));
  await assert.rejects(
    open(tree({ a: "a" }), { heldOutFraction: 0.5 }),
    code("config.heldOutFraction"),
  );
});

test("a file that changes for the worse between the readings is an error, not a gap", async () => {
  const root = tree({ a: "text" });
  const corpus = await open(root);
  writeFileSync(join(root, "a"), Uint8Array.of(0xff));
  await assert.rejects(textsOf(corpus), code("data.changed"));
});

test("the sides have every file once, near the wanted share, and new files move none", async () => {
  const random = new Random(9, "split");
  const files: Record<string, string> = {};
  for (let i = 0; i < 300; i++)
    files[`f${i}.txt`] = `${i} ${"word ".repeat(20 + random.below(60))}`;
  const root = tree(files);
  const corpus = await open(root, { heldOutFraction: 0.1 });
  const [train, heldOut] = [await textsOf(corpus), await textsOf(corpus, "heldOut")];
  assert.deepEqual([...train, ...heldOut].sort(), Object.values(files).sort());
  const share = Buffer.byteLength(heldOut.join("")) / corpus.report.bytes;
  assert.ok(share > 0.05 && share < 0.2, `held out ${share}`);
  for (let i = 0; i < 50; i++) writeFileSync(join(root, `new${i}.txt`), `new ${i}`);
  const later = await textsOf(await open(root, { heldOutFraction: 0.1 }), "heldOut");
  assert.deepEqual(
    later.filter((text) => !text.startsWith("new")),
    heldOut,
  );
});

test("equal files and equal lines are on one side", async () => {
  const files: Record<string, string> = {};
  for (let i = 0; i < 120; i++) files[`f${i}`] = `text ${i % 40}`;
  const lines = Array.from({ length: 400 }, (_, i) => JSON.stringify({ text: `line ${i % 100}` }));
  for (const root of [tree(files), tree({ "a.jsonl": lines.join("\n") })]) {
    const corpus = await open(root, { heldOutFraction: 0.2 });
    const [train, heldOut] = [await textsOf(corpus), await textsOf(corpus, "heldOut")];
    assert.ok(heldOut.length > 0);
    assert.equal(train.length + heldOut.length, corpus.report.documents);
    assert.deepEqual(
      heldOut.filter((text) => train.includes(text)),
      [],
    );
  }
});

test("at least one file is held out, and never a large one", async () => {
  const files: Record<string, string> = { large: "large file\n".repeat(500) };
  for (let i = 0; i < 30; i++) files[`f${i}`] = `small ${i}`;
  for (const heldOutFraction of [0.0005, 0.01, 0.05, 0.3]) {
    const corpus = await open(tree(files), { heldOutFraction });
    const heldOut = await textsOf(corpus, "heldOut");
    assert.equal(corpus.heldOut.kind, heldOutFraction === 0.0005 ? "tails" : "files");
    assert.ok(heldOut.length >= 1);
    if (corpus.heldOut.kind === "files")
      assert.ok(heldOut.every((text) => text.startsWith("small")));
  }
});

test("of one file, the last lines are held out", async () => {
  const text = Array.from({ length: 1000 }, (_, i) => `línea ${i}\n`).join("");
  for (const documentBytesMax of [2 ** 24, 500]) {
    const corpus = await open(tree({ "a.txt": text }), { heldOutFraction: 0.1, documentBytesMax });
    const [train, heldOut] = [await textsOf(corpus), await textsOf(corpus, "heldOut")];
    assert.equal(corpus.heldOut.kind, "tails");
    assert.equal(train.join("") + heldOut.join(""), text);
    assert.match(train.at(-1)!, /\n$/);
    const share = Buffer.byteLength(heldOut.join("")) / Buffer.byteLength(text);
    assert.ok(Math.abs(share - 0.1) < 0.01, `held out ${share}`);
  }
  const line = await open(tree({ a: "é".repeat(100) }), { heldOutFraction: 0.25 });
  assert.deepEqual(await textsOf(line, "heldOut"), ["é".repeat(25)]);
});

test("of a few lines of jsonl, one is held out", async () => {
  const root = tree({ "a.jsonl": '{"text":"a"}\n{"text":"b"}\n{"text":"c"}\n{"text":"a"}' });
  const corpus = await open(root, { heldOutFraction: 0.01 });
  const heldOut = await textsOf(corpus, "heldOut");
  assert.equal(new Set(heldOut).size, 1);
  assert.equal((await textsOf(corpus)).length, 4 - heldOut.length);
});

test("the fingerprint follows names, contents and the split, not the place", async () => {
  const files = { a: "one", b: "two" };
  const first = (await open(tree(files))).fingerprint;
  assert.equal((await open(tree(files))).fingerprint, first);
  assert.notEqual((await open(tree({ a: "one", c: "two" }))).fingerprint, first);
  assert.notEqual((await open(tree({ a: "one", b: "tw0" }))).fingerprint, first);
  assert.notEqual((await open(tree(files), { heldOutFraction: 0.1 })).fingerprint, first);
});

test("sample texts stop at the wanted bytes", async () => {
  const corpus = await open(tree({ a: "1234", b: "1234", c: "1234" }));
  assert.equal((await corpus.sampleTexts(8)).length, 2);
  assert.equal((await corpus.sampleTexts(Infinity)).length, 3);
});
