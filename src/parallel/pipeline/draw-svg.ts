/**
 * @file A timeline as an SVG picture: time to the right, one row a rank, bubbles left dark.
 *
 * A pair is drawn as two half-height boxes over each other, since its halves run interleaved. With
 * a second timeline, what was measured stands under what was planned, each to its own scale.
 */
import { type Action, type ChunkAction, partsOf } from "./action.ts";
import { directionOf, type PipelineLayout } from "./layout.ts";
import type { Timeline } from "./simulate.ts";

/** A timeline with its heading and the unit of its times. */
export interface Picture {
  readonly heading: string;
  readonly timeline: Timeline;
}

const ROW = 26;
const LEFT = 70;
const TOP = 34;
const WIDTH = 1200;
const LEGEND = 30;

const COLOURS: Readonly<Record<ChunkAction["kind"], readonly [forward: string, reverse: string]>> =
  {
    F: ["#f6b26b", "#ffe0b8"],
    B: ["#4a86c8", "#a9c9ec"],
    I: ["#3fa7a0", "#a5dcd8"],
    W: ["#6aa84f", "#b9dcaa"],
  };
const NAMES: Readonly<Record<ChunkAction["kind"], string>> = {
  F: "forward",
  B: "backward",
  I: "input gradient",
  W: "weight gradient",
};

/** The pictures under each other, and a legend. */
export function drawSvg(layout: PipelineLayout, pictures: readonly Picture[]): string {
  const panelHeight = TOP + layout.numRanks * ROW + 12;
  const height = pictures.length * panelHeight + LEGEND;
  const panels = pictures.map((picture, index) => drawPanel(layout, picture, index * panelHeight));
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${LEFT + WIDTH + 10} ${height}" ` +
      'font-family="system-ui, sans-serif" font-size="11">',
    `<rect width="100%" height="100%" fill="#ffffff"/>`,
    ...panels.flat(),
    ...drawLegend(height - LEGEND),
    "</svg>\n",
  ].join("\n");
}

function drawPanel(layout: PipelineLayout, { heading, timeline }: Picture, top: number): string[] {
  const scale = WIDTH / Math.max(timeline.makespan, Number.MIN_VALUE);
  const lines = [`<text x="${LEFT}" y="${top + 20}" font-size="14">${escapeText(heading)}</text>`];
  for (const [rank, { actions }] of timeline.ranks.entries()) {
    const y = top + TOP + rank * ROW;
    lines.push(
      `<text x="${LEFT - 8}" y="${y + 16}" text-anchor="end">rank ${rank}</text>`,
      `<rect x="${LEFT}" y="${y}" width="${WIDTH}" height="${ROW - 2}" fill="#3c3c3c"/>`,
    );
    for (const { action, start, end } of actions) {
      const box = { x: LEFT + start * scale, y, width: (end - start) * scale };
      lines.push(...drawAction(layout, action, box));
    }
  }
  return lines;
}

interface Box {
  readonly x: number;
  readonly y: number;
  readonly width: number;
}

function drawAction(layout: PipelineLayout, action: Action, { x, y, width }: Box): string[] {
  const parts = partsOf(action);
  const height = (ROW - 2) / parts.length;
  return parts.flatMap((part, index) => {
    const isReverse = directionOf(layout, part.microBatch).direction === "reverse";
    const colour = COLOURS[part.kind][isReverse ? 1 : 0];
    const top = y + index * height;
    const title = `${NAMES[part.kind]}: micro-batch ${part.microBatch}, stage ${part.stage}`;
    const rect =
      `<rect x="${round(x)}" y="${round(top)}" width="${round(width)}" ` +
      `height="${round(height)}" fill="${colour}" stroke="#ffffff" stroke-width="0.6">` +
      `<title>${title}</title></rect>`;
    if (width < 9) return [rect];
    const baseline = top + height / 2 + 4;
    const text =
      `<text x="${round(x + width / 2)}" y="${round(baseline)}" text-anchor="middle">` +
      `${part.microBatch}</text>`;
    return [rect, text];
  });
}

function drawLegend(top: number): string[] {
  const boxes = Object.entries(COLOURS).flatMap(([kind, [forward, reverse]], index) => {
    const x = LEFT + index * 170;
    return [
      `<rect x="${x}" y="${top}" width="12" height="14" fill="${forward}"/>`,
      `<rect x="${x + 12}" y="${top}" width="12" height="14" fill="${reverse}"/>`,
      `<text x="${x + 30}" y="${top + 11}">${kind}: ${NAMES[kind as ChunkAction["kind"]]}</text>`,
    ];
  });
  const x = LEFT + 4 * 170;
  const note = "bubble (pale: the reverse direction)";
  return [
    ...boxes,
    `<rect x="${x}" y="${top}" width="24" height="14" fill="#3c3c3c"/>`,
    `<text x="${x + 30}" y="${top + 11}">${note}</text>`,
  ];
}

function round(value: number): string {
  return String(Math.round(value * 100) / 100);
}

function escapeText(text: string): string {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
}
