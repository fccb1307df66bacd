/** @file For tests of constraints: a vocabulary, random walks under masks, random tokenizations. */
import assert from "node:assert/strict";
import type { Random } from "../../base/random.ts";
import { Constraint, type ConstraintState } from "./constraint.ts";
import type { Network } from "./network.ts";
import { TokenTrie } from "./token-trie.ts";

export const END_TOKEN = 0;

/** The end token, all bytes, and what JSON texts are often made of, cut across their structure. */
export function testTrie(extra: readonly string[] = []): TokenTrie {
  const pieces = [
    ...['{"', '":', '": ', '",', '", "', '"}', '"}}', "}}", "]}", "}]", "[[", "]]", ", ", "},"],
    ...["\n  ", "\n    ", ": ", "true", "false", "null", ":null", "nul", "12", "00", "-1", "e+"],
    ...[
      '\\"',
      "\\u00",
      "\\n",
      "abc",
      "ab",
      "é",
      "\u{1f600}",
      'a"',
      'c":',
      '"a":1',
      "  ",
      "[]",
      "{}",
    ],
    ...extra,
  ];
  const encoder = new TextEncoder();
  const bytes = [undefined, ...Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte))];
  // Half a character, as byte-level tokens have them.
  const halves = [Uint8Array.of(0xc3), Uint8Array.of(0xf0, 0x9f), Uint8Array.of(0xa9, 0x22)];
  return new TokenTrie([...bytes, ...pieces.map((piece) => encoder.encode(piece)), ...halves]);
}

export function startOf(network: Network, trie: TokenTrie): ConstraintState {
  return new Constraint(network, trie).start(END_TOKEN);
}

export function newMask(trie: TokenTrie): Uint32Array {
  return new Uint32Array((trie.vocabSize + 31) >>> 5);
}

export function tokensOf(mask: Uint32Array, vocabSize: number): number[] {
  return Array.from({ length: vocabSize }, (_, id) => id).filter(
    (id) => (mask[id >>> 5]! >>> (id & 31)) & 1,
  );
}

/** Bytes that bring a text to its end soon, the best first. */
const CLOSING = tokensOfText('}]"n0u123456789ltrefas:,{[');
/** The same inside a string, which is where a g may stand. */
const CLOSING_STRING = tokensOfText('"}]n0u123456789ltrefas:,{[');
const [LETTER] = tokensOfText("g");

function tokensOfText(text: string): number[] {
  return [...text].map((character) => character.codePointAt(0)! + 1);
}

/** Tokens chosen at random for a while, then those that end the text; the text. */
export function generateText(state: ConstraintState, trie: TokenTrie, random: Random): string {
  const bytes: number[] = [];
  const mask = newMask(trie);
  const numRandom = random.below(40);
  for (let step = 0; step < 3000; step++) {
    state.mask(mask);
    const allowed = tokensOf(mask, trie.vocabSize);
    assert.ok(allowed.length > 0, `nothing may follow ${JSON.stringify(textOf(bytes))}`);
    const best = allowed.includes(LETTER!) ? CLOSING_STRING : CLOSING;
    const closing = best.find((token) => allowed.includes(token)) ?? allowed[0]!;
    const isEnding = step >= numRandom;
    const token = allowed[random.below(allowed.length)]!;
    const chosen = isEnding ? (allowed.includes(END_TOKEN) ? END_TOKEN : closing) : token;
    state.accept(chosen);
    if (chosen === END_TOKEN) return textOf(bytes);
    bytes.push(...trie.tokenBytes(chosen)!);
  }
  return assert.fail(`no end after ${JSON.stringify(textOf(bytes).slice(0, 500))}`);
}

function textOf(bytes: readonly number[]): string {
  return new TextDecoder("utf-8").decode(Uint8Array.from(bytes));
}

/** Read a text, cut at random into tokens; whether it was read to a complete end. */
export function readsText(
  start: ConstraintState,
  trie: TokenTrie,
  text: string,
  random: Random,
): boolean {
  const state = start.fork();
  const bytes = new TextEncoder().encode(text);
  for (let at = 0; at < bytes.length; ) {
    const fitting = Array.from({ length: trie.vocabSize }, (_, id) => id).filter((id) => {
      const token = trie.tokenBytes(id);
      return token?.every((byte, i) => bytes[at + i] === byte) ?? false;
    });
    const token = fitting[random.below(fitting.length)]!;
    if (!state.allows(token)) return false;
    state.accept(token);
    at += trie.tokenBytes(token)!.length;
  }
  return state.isComplete;
}
