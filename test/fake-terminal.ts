/** @file A stream that remembers what was written to it, for the tests of the command line. */
import type { TextStream } from "../src/cli/progress.ts";

export class FakeTerminal implements TextStream {
  readonly isTTY: boolean;
  readonly columns: number | undefined;
  text = "";

  constructor({ isTTY = false, columns }: { isTTY?: boolean; columns?: number } = {}) {
    this.isTTY = isTTY;
    this.columns = columns;
  }

  write(text: string): void {
    this.text += text;
  }
}
