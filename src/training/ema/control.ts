/**
 * @file The words that the trainer and the averaging thread share.
 *
 * `requested` and `completed` count updates: the thread has work while they differ. `failed` is set
 * by a thread that cannot go on, so that nobody waits for it for ever.
 */

export const REQUESTED = 0;
export const COMPLETED = 1;
export const FAILED = 2;

/** Bytes 0..15 are the counters, bytes 16..23 the weight of the next update. */
export const CONTROL_BYTES = 24;

export interface AverageControl {
  readonly counters: Int32Array<SharedArrayBuffer>;
  readonly weight: Float64Array<SharedArrayBuffer>;
}

export function viewControl(buffer: SharedArrayBuffer): AverageControl {
  return { counters: new Int32Array(buffer, 0, 3), weight: new Float64Array(buffer, 16, 1) };
}

/** Where one span's values and averages stand in shared memory. */
export interface SpanPlaces {
  readonly valuesOffset: number;
  readonly averageOffset: number;
  readonly length: number;
}

/** What the thread is told when it starts. */
export interface AverageWorkerStart {
  readonly wasm: WebAssembly.Memory;
  readonly spans: readonly SpanPlaces[];
  readonly control: SharedArrayBuffer;
}

/** average ← average + (value − average)·weight, computed in f64 and rounded to f32 once. */
export function averageSpan(values: Float32Array, average: Float32Array, weight: number): void {
  for (let index = 0; index < average.length; index++) {
    const held = average[index]!;
    average[index] = held + (values[index]! - held) * weight;
  }
}
