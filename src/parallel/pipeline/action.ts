/**
 * @file What a rank does in a pipeline, action by action.
 *
 *   F     forward of one micro-batch through one stage
 *   B     full backward: gradient of the input and of the weights
 *   I     backward for the input only; its W follows later
 *   W     backward for the weights, of a micro-batch whose I has run
 *   F&B   a forward and a full backward of different micro-batches, interleaved so that one
 *         computes while the other communicates
 *
 * A schedule is such actions and nothing else: no time, no memory, no messages. Those follow from
 * the layout (layout.ts).
 */

export const CHUNK_KINDS = ["F", "B", "I", "W"] as const;
export type ChunkKind = (typeof CHUNK_KINDS)[number];

/** One micro-batch in one stage. */
export interface Chunk {
  readonly stage: number;
  readonly microBatch: number;
}

export interface ChunkAction extends Chunk {
  readonly kind: ChunkKind;
}

export interface PairAction {
  readonly kind: "F&B";
  readonly forward: Chunk;
  readonly backward: Chunk;
}

export type Action = ChunkAction | PairAction;
export type ActionKind = Action["kind"];

/** What an action consists of: itself, or the two halves of a pair, backward first. */
export function partsOf(action: Action): readonly ChunkAction[] {
  if (action.kind !== "F&B") return [action];
  return [
    { kind: "B", ...action.backward },
    { kind: "F", ...action.forward },
  ];
}

/** `0F3`: stage 0, forward, micro-batch 3. */
export function describeChunk({ kind, stage, microBatch }: ChunkAction): string {
  return `${stage}${kind}${microBatch}`;
}
