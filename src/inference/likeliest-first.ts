/**
 * @file Indexes by falling weight, equal weights by rising index, as far as the caller reads.
 *
 * A binary heap: building it costs one pass over the vocabulary, each index read log₂ of its size,
 * so that the few likeliest of 129,280 tokens are found without sorting all.
 */

/** The first `count` indexes, or all, of `weights`, none of which may be NaN. */
export function* likeliestFirst(
  weights: Float64Array,
  count: number,
): Generator<number, void, undefined> {
  const heap = new Int32Array(weights.length);
  for (let index = 0; index < heap.length; index++) heap[index] = index;
  for (let at = Math.floor(heap.length / 2) - 1; at >= 0; at--)
    sink(heap, heap.length, at, weights);
  for (let last = heap.length - 1; last >= Math.max(0, heap.length - count); last--) {
    yield heap[0]!;
    heap[0] = heap[last]!;
    sink(heap, last, 0, weights);
  }
}

function isBefore(weights: Float64Array, left: number, right: number): boolean {
  const a = weights[left]!;
  const b = weights[right]!;
  return a > b || (a === b && left < right);
}

/** Move the index at `at` down until none of the two below it comes before it. */
function sink(heap: Int32Array, count: number, at: number, weights: Float64Array): void {
  const index = heap[at]!;
  let place = at;
  for (;;) {
    let child = 2 * place + 1;
    if (child >= count) break;
    if (child + 1 < count && isBefore(weights, heap[child + 1]!, heap[child]!)) child++;
    if (!isBefore(weights, heap[child]!, index)) break;
    heap[place] = heap[child]!;
    place = child;
  }
  if (place < count) heap[place] = index;
}
