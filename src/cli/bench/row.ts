/** @file One line of `hadal bench`. */

export interface BenchRow {
  readonly name: string;
  readonly shape: string;
  /** Kernels and threads: "x64 ×1". */
  readonly implementation: string;
  readonly gflops?: number;
  readonly gbytesPerSecond?: number;
  readonly tokensPerSecond?: number;
  /**
   * Of the measured peak of the threads used, for products; for row kernels of what plain loops
   * over the same operands move, measured in turns.
   */
  readonly shareOfPeak?: number;
  /** The peer, and our rate over its. */
  readonly against?: string;
  readonly ratio?: number;
  /** The most memory the process had resident, and over the peer's. */
  readonly peakBytes?: number;
  readonly peakRatio?: number;
}

/** Rows for people. */
export function benchTable(rows: readonly BenchRow[]): string[][] {
  const number = (value: number | undefined, digits: number): string =>
    value === undefined ? "" : value.toFixed(digits);
  const mebibytes = (bytes: number | undefined): number | undefined =>
    bytes === undefined ? undefined : bytes / 2 ** 20;
  const withMemory = rows.some(({ peakBytes }) => peakBytes !== undefined);
  const percent = (value: number | undefined): string =>
    value === undefined ? "" : `${(100 * value).toFixed(0)} %`;
  return [
    [
      "name",
      "shape",
      "runs on",
      "GFLOP/s",
      "GB/s",
      "tokens/s",
      "of peak",
      "against",
      ...(withMemory ? ["peak MiB"] : []),
    ],
    ...rows.map((row) => [
      row.name,
      row.shape,
      row.implementation,
      number(row.gflops, 1),
      number(row.gbytesPerSecond, 1),
      number(row.tokensPerSecond, 0),
      percent(row.shareOfPeak),
      row.against === undefined ? "" : `${number(row.ratio, 2)} × ${row.against}`,
      ...(withMemory
        ? [`${number(mebibytes(row.peakBytes), 0)} (${number(row.peakRatio, 2)} ×)`]
        : []),
    ]),
  ];
}
