/** @file The live line, with a clock the test turns; and the text helpers it is made of. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { FakeTerminal } from "../../test/fake-terminal.ts";
import { ProgressLine, progressText } from "./progress.ts";
import { columns, cutTo, durationText, visibleWidth, wrap } from "./text.ts";

const WIPE = "\r\x1b[2K";

describe("the progress line", () => {
  test("prints nothing off a terminal", () => {
    const log = new FakeTerminal();
    const line = new ProgressLine(log);
    line.update({ done: 1, total: 2, text: "step 1" });
    line.clear();
    assert.equal(log.text, "");
  });

  test("is redrawn at most ten times a second", () => {
    const terminal = new FakeTerminal({ isTTY: true, columns: 80 });
    let nowMs = 0;
    const line = new ProgressLine(terminal, () => nowMs);
    for (nowMs = 0; nowMs <= 1000; nowMs += 10) line.update({ done: nowMs, total: 1000, text: "" });
    assert.equal(terminal.text.split(WIPE).length - 1, 11);
  });

  test("says how long the rest takes at the pace so far", () => {
    const terminal = new FakeTerminal({ isTTY: true, columns: 80 });
    let nowMs = 5000;
    const line = new ProgressLine(terminal, () => nowMs);
    line.update({ done: 100, total: 200, text: "resumed" });
    assert.doesNotMatch(terminal.text, /left/, "no pace is known yet");
    nowMs += 10_000;
    line.update({ done: 125, total: 200, text: "going" });
    assert.match(terminal.text, /62% {2}going {2}30s left$/);
  });

  test("is wiped for other output and drawn again right after it", () => {
    const terminal = new FakeTerminal({ isTTY: true, columns: 80 });
    const line = new ProgressLine(terminal, () => 0);
    line.update({ done: 1, total: 2, text: "a" });
    line.clear();
    line.clear();
    line.update({ done: 1, total: 2, text: "b" });
    const [, first, wiped, second] = terminal.text.split(WIPE);
    assert.match(first!, /a$/);
    assert.equal(wiped, "");
    assert.match(second!, /^█+░+ 50% {2}b$/);
  });

  test("never fills the terminal's width, however narrow", () => {
    const state = { done: 3, total: 10, text: "loss 3.1415 tokens/s 1,234 balance 0.12" };
    for (let width = 4; width <= 120; width++) {
      assert.ok(visibleWidth(progressText(state, 3600, width)) < width, `${width} columns`);
    }
    assert.match(progressText(state, 3600, 120), /^█{6}░{14} 30% {2}loss.* {2}1h00m left$/);
  });

  test("shows a share between nothing and all, whatever the counts", () => {
    assert.match(progressText({ done: 12, total: 10, text: "" }, 0, 80), /100%/);
    assert.match(progressText({ done: 0, total: 0, text: "" }, undefined, 80), / 0%/);
  });
});

describe("text on a terminal", () => {
  test("durations read as people say them", () => {
    const spoken = [0, 59.4, 59.6, 125, 3599.6, 3720, -1].map(durationText);
    assert.deepEqual(spoken, ["0s", "59s", "1m00s", "2m05s", "1h00m", "1h02m", "0s"]);
  });

  test("wrapping breaks at spaces and keeps long words whole", () => {
    assert.deepEqual(wrap("to be or not", 5), ["to be", "or", "not"]);
    assert.deepEqual(wrap("a-very-long-word b", 5), ["a-very-long-word", "b"]);
  });

  test("cutting leaves the width asked for, ellipsis included", () => {
    assert.equal(cutTo("abcdef", 6), "abcdef");
    assert.equal(cutTo("abcdef", 4), "abc…");
    assert.equal(cutTo("abcdef", 0), "");
  });

  test("columns align by what is seen, not by escape codes", () => {
    const rows = [
      ["\x1b[1mab\x1b[22m", "1"],
      ["abcd", "22"],
    ];
    const lines = columns(rows, ["left", "right"]);
    assert.deepEqual(lines, ["\x1b[1mab\x1b[22m     1", "abcd  22"]);
  });
});
