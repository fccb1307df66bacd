/**
 * @file A line chart as SVG: series of points over one pair of axes, linear or logarithmic.
 *
 * Points at zero or below have no place on a logarithmic axis and are left out.
 */
export interface Series {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

export interface Chart {
  readonly title: string;
  readonly xLabel: string;
  readonly yLabel: string;
  readonly isLogarithmic: boolean;
  readonly series: readonly Series[];
  /** A dashed line across, such as a limit. */
  readonly limit?: { readonly y: number; readonly name: string };
}

const WIDTH = 760;
const HEIGHT = 420;
const LEFT = 80;
const RIGHT = 150;
const TOP = 40;
const BOTTOM = 50;
const COLOURS = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"];
const TICKS = 5;

/** One axis: from values to pixels, and where its ticks are. */
interface Axis {
  place(value: number): number;
  readonly ticks: readonly number[];
}

export function drawLineChart(chart: Chart): string {
  const points = chart.series.flatMap((series) => visible(chart, series));
  const ys = [...points.map(([, y]) => y), ...(chart.limit === undefined ? [] : [chart.limit.y])];
  const x = axis(
    points.map(([value]) => value),
    [LEFT, WIDTH - RIGHT],
    chart.isLogarithmic,
  );
  const y = axis(ys, [HEIGHT - BOTTOM, TOP], chart.isLogarithmic);
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" ` +
      `font-family="sans-serif" font-size="12" role="img">`,
    `<title>${escapeText(chart.title)}</title>`,
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="#fff"/>`,
    text(LEFT, TOP - 16, chart.title, `font-size="14" font-weight="bold"`),
    ...gridLines(x, y),
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, chart.xLabel, `text-anchor="middle"`),
    text(
      0,
      0,
      chart.yLabel,
      `text-anchor="middle" transform="translate(16 ${HEIGHT / 2}) rotate(-90)"`,
    ),
    ...limitLine(chart, y),
    ...chart.series.flatMap((series, index) => drawSeries(chart, series, index, { x, y })),
    "</svg>",
    "",
  ].join("\n");
}

function visible({ isLogarithmic }: Chart, { points }: Series): Series["points"] {
  return isLogarithmic ? points.filter(([x, y]) => x > 0 && y > 0) : points;
}

function axis(
  values: readonly number[],
  [from, to]: readonly [number, number],
  isLogarithmic: boolean,
): Axis {
  const scaled = isLogarithmic ? values.map(Math.log10) : values;
  let [low, high] = [Infinity, -Infinity];
  for (const value of scaled) [low, high] = [Math.min(low, value), Math.max(high, value)];
  if (!(low < high)) [low, high] = [low - 1, high + 1];
  const place = (value: number): number => {
    const at = isLogarithmic ? Math.log10(value) : value;
    return from + ((at - low) / (high - low)) * (to - from);
  };
  const step = (high - low) / (TICKS - 1);
  const ticks = Array.from({ length: TICKS }, (_, index) => {
    const at = low + index * step;
    return isLogarithmic ? 10 ** at : at;
  });
  return { place, ticks };
}

function gridLines(x: Axis, y: Axis): string[] {
  const line = `stroke="#d0d7de" stroke-width="1"`;
  return [
    ...x.ticks.flatMap((tick) => {
      const at = x.place(tick).toFixed(1);
      return [
        `<line x1="${at}" y1="${TOP}" x2="${at}" y2="${HEIGHT - BOTTOM}" ${line}/>`,
        text(Number(at), HEIGHT - BOTTOM + 16, label(tick), `text-anchor="middle"`),
      ];
    }),
    ...y.ticks.flatMap((tick) => {
      const at = y.place(tick).toFixed(1);
      return [
        `<line x1="${LEFT}" y1="${at}" x2="${WIDTH - RIGHT}" y2="${at}" ${line}/>`,
        text(LEFT - 6, Number(at) + 4, label(tick), `text-anchor="end"`),
      ];
    }),
  ];
}

function limitLine({ limit }: Chart, y: Axis): string[] {
  if (limit === undefined) return [];
  const at = y.place(limit.y).toFixed(1);
  return [
    `<line x1="${LEFT}" y1="${at}" x2="${WIDTH - RIGHT}" y2="${at}" stroke="#57606a" ` +
      `stroke-dasharray="5 4"/>`,
    text(WIDTH - RIGHT + 6, Number(at) + 4, limit.name, `fill="#57606a"`),
  ];
}

function drawSeries(
  chart: Chart,
  series: Series,
  index: number,
  { x, y }: { readonly x: Axis; readonly y: Axis },
): string[] {
  const points = visible(chart, series);
  if (points.length === 0) return [];
  const path = points.map(([px, py]) => `${x.place(px).toFixed(1)},${y.place(py).toFixed(1)}`);
  const colour = COLOURS[index % COLOURS.length]!;
  const top = TOP + 18 * index;
  return [
    `<polyline points="${path.join(" ")}" fill="none" stroke="${colour}" stroke-width="1.5"/>`,
    `<rect x="${WIDTH - RIGHT + 8}" y="${top}" width="10" height="10" fill="${colour}"/>`,
    text(WIDTH - RIGHT + 24, top + 9, series.name, ""),
  ];
}

function text(x: number, y: number, content: string, attributes: string): string {
  return `<text x="${x}" y="${y}" ${attributes}>${escapeText(content)}</text>`;
}

function escapeText(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function label(value: number): string {
  const magnitude = Math.abs(value);
  if (value === 0) return "0";
  if (magnitude >= 1e4 || magnitude < 1e-2) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}
