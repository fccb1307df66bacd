/** @file One line of `hadal bench serve`. */

export interface ServeRow {
  readonly name: string;
  /** What was asked of the server. */
  readonly workload: string;
  /** null: not available, and `note` says why. */
  readonly value: number | null;
  readonly unit: "tokens/s" | "ms" | "µs" | "left";
  /** The value over another one, or another one over it, and what that is. */
  readonly ratio?: number;
  readonly of?: string;
  readonly note?: string;
}

/** Rows for people. */
export function serveTable(rows: readonly ServeRow[]): string[][] {
  return [
    ["measure", "workload", "value", "", "ratio", "", "notes"],
    ...rows.map(({ name, workload, value, unit, ratio, of = "", note = "" }) => [
      name,
      workload,
      value === null ? "not available" : figure(value),
      value === null ? "" : unit,
      ratio === undefined ? "" : `${figure(ratio)} ×`,
      of,
      note,
    ]),
  ];
}

function figure(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

/** The value below which a share of the values lies. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}
