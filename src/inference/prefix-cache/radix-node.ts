/**
 * @file A node of the radix tree: a run of blocks, and the continuations that differ in their first
 * block.
 *
 * Children stand in the order of their first block's tokens. So a child is found by bisection, in
 * a time that no choice of tokens can spoil, and the cached tokens most like the wanted ones are
 * beside the place where these would stand: a near miss costs nothing more to explain.
 */
import { type CachedBlock, countCommonTokens } from "./latent-block.ts";

export class RadixNode {
  parent: RadixNode | null;
  /** Empty in a root alone. */
  blocks: CachedBlock[];
  readonly children: RadixNode[] = [];
  /** Neighbours in the order of use; null at the ends and in roots. */
  lessRecent: RadixNode | null = null;
  moreRecent: RadixNode | null = null;

  constructor(parent: RadixNode | null, blocks: CachedBlock[]) {
    this.parent = parent;
    this.blocks = blocks;
  }

  addChild(child: RadixNode): void {
    this.children.splice(findPlace(this, child.blocks[0]!.tokens, 0), 0, child);
  }

  removeChild(child: RadixNode): void {
    this.children.splice(findPlace(this, child.blocks[0]!.tokens, 0), 1);
  }

  /** Put a node that begins with the same block in the place of a child. */
  replaceChild(child: RadixNode, replacement: RadixNode): void {
    this.children[findPlace(this, child.blocks[0]!.tokens, 0)] = replacement;
  }
}

/** The child whose first block is most like `tokens` from `start` on. */
export interface NearestChild {
  readonly child: RadixNode;
  /** Of the first block; 64 when the child is the continuation. */
  readonly numCommon: number;
}

export function findNearestChild(
  node: RadixNode,
  tokens: Int32Array,
  start: number,
): NearestChild | null {
  const place = findPlace(node, tokens, start);
  let nearest: NearestChild | null = null;
  for (const child of [node.children[place], node.children[place - 1]]) {
    if (child === undefined) continue;
    const numCommon = countCommonTokens(child.blocks[0]!.tokens, tokens, start);
    if (nearest === null || numCommon > nearest.numCommon) nearest = { child, numCommon };
  }
  return nearest;
}

/** The first child that is not before `tokens` from `start` on. */
function findPlace(node: RadixNode, tokens: Int32Array, start: number): number {
  let low = 0;
  let high = node.children.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isBefore(node.children[middle]!.blocks[0]!.tokens, tokens, start)) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Whether a block stands before `tokens` from `start` on; an end stands before everything. */
function isBefore(block: Int32Array, tokens: Int32Array, start: number): boolean {
  const numCommon = countCommonTokens(block, tokens, start);
  if (numCommon === block.length || start + numCommon === tokens.length) return false;
  return block[numCommon]! < tokens[start + numCommon]!;
}
