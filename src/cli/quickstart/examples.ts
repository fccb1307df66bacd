/**
 * @file What the quickstart asks the trained model: declarations after their comments, and gaps in
 * lines, from files that were held out.
 *
 * Chosen by a seed, spread over the text, without looking at what the model makes of them.
 */
import type { Random } from "../../base/random.ts";

/** Continue `prefix`; `truth` is what the file says there. */
export interface CommentExample {
  readonly prefix: string;
  /** The comment alone, for showing. */
  readonly comment: string;
  readonly truth: string;
}

/** Fill the gap between `prefix` and `suffix`. */
export interface GapExample {
  readonly prefix: string;
  readonly truth: string;
  readonly suffix: string;
}

/** Text before the place, in characters: what a small model can make use of. */
const CONTEXT_CHARACTERS = 600;
const SUFFIX_CHARACTERS = 200;
/**
 * With the line's end, not with the indentation after it: tokens join that to the word that
 * follows.
 */
const COMMENT = /\/\*\*(?:[^*]|\*(?!\/))*\*\/[ \t]*\n/g;
/** Shorter comments hardly describe, longer ones fill the screen. */
const COMMENT_CHARACTERS = { least: 40, most: 400 };
const DECLARATION_CHARACTERS = { least: 12, most: 120 };
const GAP_LINE = /^[ \t]*\S.{28,90}[;,{]$/;

/** Comments with the declaration line that follows each. */
export function chooseCommentExamples(
  documents: readonly string[],
  count: number,
  random: Random,
): CommentExample[] {
  const found = documents.flatMap((text) =>
    Array.from(text.matchAll(COMMENT), (match): CommentExample | null => {
      const start = match.index;
      const end = start + match[0].length;
      const lineEnd = text.indexOf("\n", end);
      const truth = text.slice(end, lineEnd < 0 ? text.length : lineEnd).trimEnd();
      const comment = match[0].trimEnd();
      const fits =
        isWithin(comment.length, COMMENT_CHARACTERS) &&
        isWithin(truth.length, DECLARATION_CHARACTERS) &&
        /^\s*[A-Za-z]/.test(truth);
      if (!fits) return null;
      return { prefix: contextBefore(text, end), comment, truth };
    }),
  );
  return choose(
    found.filter((example) => example !== null),
    count,
    random,
  );
}

/** Lines with a gap from a word in their middle to their end. */
export function chooseGapExamples(
  documents: readonly string[],
  count: number,
  random: Random,
): GapExample[] {
  const found = documents.flatMap((text) => {
    const examples: GapExample[] = [];
    let start = 0;
    for (const line of text.split("\n")) {
      // The gap begins with a space, which tokens join to the word after it.
      const middle = line.indexOf(" ", Math.floor(line.length / 3));
      const isComment = /^\s*(\*|\/)/.test(line);
      if (GAP_LINE.test(line) && !isComment && middle > 0 && middle < line.length - 8) {
        const [from, to] = [start + middle, start + line.length];
        examples.push({
          prefix: contextBefore(text, from),
          truth: text.slice(from, to),
          suffix: text.slice(to, to + SUFFIX_CHARACTERS),
        });
      }
      start += line.length + 1;
    }
    return examples;
  });
  return choose(found, count, random);
}

function isWithin(value: number, { least, most }: { least: number; most: number }): boolean {
  return value >= least && value <= most;
}

/** The context before a place, beginning at a line's start. */
function contextBefore(text: string, end: number): string {
  const start = Math.max(0, end - CONTEXT_CHARACTERS);
  if (start === 0) return text.slice(0, end);
  const lineStart = text.indexOf("\n", start) + 1;
  return text.slice(lineStart > 0 && lineStart < end ? lineStart : start, end);
}

/** `count` of the candidates, one from each of `count` equal stretches. */
function choose<T>(candidates: readonly T[], count: number, random: Random): T[] {
  const stretches = Math.min(count, candidates.length);
  return Array.from({ length: stretches }, (_, index) => {
    const from = Math.floor((index * candidates.length) / stretches);
    const to = Math.floor(((index + 1) * candidates.length) / stretches);
    return candidates[from + random.below(to - from)]!;
  });
}
