/** @file Text on a terminal: visible width, cutting, wrapping, columns, durations. */
import { stripVTControlCharacters } from "node:util";

/** The number of characters a terminal shows; colours take none. */
export function visibleWidth(text: string): number {
  return [...stripVTControlCharacters(text)].length;
}

/** The text, or its beginning and an ellipsis, in at most `width` characters. Plain text only. */
export function cutTo(text: string, width: number): string {
  const characters = [...text];
  if (characters.length <= width) return text;
  return `${characters.slice(0, Math.max(0, width - 1)).join("")}…`.slice(0, Math.max(0, width));
}

/** Lines of at most `width` characters, broken at spaces; a longer word stays whole. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && visibleWidth(line) + 1 + visibleWidth(word) > width) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  return [...lines, line];
}

/** Which side of a column its cells lean to. */
export type Alignment = "left" | "right";

/**
 * Rows as lines with aligned columns, two spaces apart; without `align` every column leans left.
 */
export function columns(
  rows: readonly (readonly string[])[],
  align: readonly Alignment[] = [],
): string[] {
  const widths: number[] = [];
  for (const row of rows) {
    for (const [column, cell] of row.entries()) {
      widths[column] = Math.max(widths[column] ?? 0, visibleWidth(cell));
    }
  }
  return rows.map((row) =>
    row
      .map((cell, column) => {
        const padding = " ".repeat(widths[column]! - visibleWidth(cell));
        return align[column] === "right" ? padding + cell : cell + padding;
      })
      .join("  ")
      .trimEnd(),
  );
}

/** "45s", "2m05s", "1h02m". */
export function durationText(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole}s`;
  const twoDigits = (part: number): string => String(part).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes}m${twoDigits(whole % 60)}s`;
  return `${Math.floor(minutes / 60)}h${twoDigits(minutes % 60)}m`;
}
