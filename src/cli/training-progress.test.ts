/** @file What training tells people of its text: nothing is left out silently. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeTerminal } from "../../test/fake-terminal.ts";
import type { CorpusReport } from "../training/data/corpus.ts";
import { resolveSettings } from "../training/settings.ts";
import { Output } from "./output.ts";
import { trainingProgress } from "./training-progress.ts";

test("lines of .jsonl that hold no text are counted where the text is announced", () => {
  const terminal = new FakeTerminal({ isTTY: false, columns: 80 });
  const output = new Output({ stdout: terminal, stderr: terminal, env: {}, json: false });
  const report = {
    documents: 3,
    bytes: 1e6,
    skippedBinary: 0,
    skippedInvalidUtf8: 0,
    skippedUnreadable: 0,
    skippedLines: 2,
  } as CorpusReport;
  const settings = resolveSettings({ preset: "tiny" });
  const start = { report, settings, vocabSize: 300, trainTokens: 9, step: 0 };
  const { onStart } = trainingProgress(output, null);
  onStart?.(start);
  assert.match(terminal.text, /^data: 3 documents, 1.00 MB, 2 lines of .jsonl skipped/m);
  onStart?.({ ...start, report: { ...report, documents: 1, skippedBinary: 1, skippedLines: 1 } });
  const one = /^data: 1 document, 1.00 MB, 1 file skipped \(.*\), 1 line of .jsonl skipped/m;
  assert.match(terminal.text, one);
});
