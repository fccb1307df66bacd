/** @file Counts in sentences: "1 step", "2 steps". */

/** The count and what is counted, of which more than one are `nouns`. */
export function counted(count: number, noun: string, nouns: string = `${noun}s`): string {
  return `${count} ${count === 1 ? noun : nouns}`;
}
