/** @file Stop strings end a text at the same place however it is cut into pieces. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../base/random.ts";
import { StopScanner } from "./stop.ts";

function scan(
  stops: readonly string[],
  pieces: readonly string[],
): readonly [string, string | null] {
  const scanner = new StopScanner(stops);
  let text = "";
  for (const piece of pieces) {
    const scanned = scanner.push(piece);
    text += scanned.text;
    if (scanned.stop !== null) return [text, scanned.stop];
  }
  return [text + scanner.end(), null];
}

describe("stop strings", () => {
  it("end the text before them", () => {
    assert.deepEqual(scan(["\n\n"], ["one\ntwo\n\nthree"]), ["one\ntwo", "\n\n"]);
    assert.deepEqual(scan([], ["all of it"]), ["all of it", null]);
  });

  it("hold back only what could still become one", () => {
    const scanner = new StopScanner(["END", "\n}\n"]);
    assert.equal(scanner.push("abcE").text, "abc");
    assert.equal(scanner.push("N").text, "");
    assert.equal(scanner.push("x\n").text, "ENx");
    assert.equal(scanner.push("} ").text, "\n} ");
    assert.equal(scanner.end(), "");
  });

  it("the one that is complete first wins, then the longer", () => {
    assert.deepEqual(scan(["abcd", "bc"], ["xabcd"]), ["xa", "bc"]);
    assert.deepEqual(scan(["bc", "abc"], ["xabc"]), ["x", "abc"]);
  });

  it("do not depend on how the text is cut", () => {
    const random = new Random(31);
    for (let round = 0; round < 3000; round++) {
      const word = (length: number): string =>
        Array.from({ length }, () => ["a", "b", "\u{1f600}"][random.below(3)]).join("");
      const stops = Array.from({ length: 1 + random.below(3) }, () => word(1 + random.below(4)));
      const text = word(random.below(14));
      const pieces: string[] = [];
      for (let at = 0; at < text.length; ) {
        const end = at + 1 + random.below(4);
        pieces.push(text.slice(at, end));
        at = end;
      }
      const seeded = `round ${round}: ${JSON.stringify({ stops, pieces })}`;
      assert.deepEqual(scan(stops, pieces), scan(stops, [text]), seeded);
    }
  });

  it("are refused when empty, malformed, too long or too many", () => {
    for (const stops of [[""], ["\ud800"], ["x".repeat(1025)], new Array(65).fill("x")]) {
      assert.throws(() => new StopScanner(stops), { code: "inference.stop" });
    }
  });
});
