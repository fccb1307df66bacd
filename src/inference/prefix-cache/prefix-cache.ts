/**
 * @file The prefix cache in memory: latent blocks of finished and running sequences, found by the
 * tokens that lead to them.
 *
 *     root of a salt ─ [blocks 0 1 2] ─┬─ [blocks 3 4]
 *                                      └─ [blocks 3 4 5 6]
 *
 * A radix tree over blocks of 64 tokens (radix-node.ts), one root for each salt: what differs in
 * salt shares nothing, so nobody learns from a hit what others asked. Tokens are compared, never
 * hashes, so a hit is always right.
 *
 * The tree holds one reference to each block it names, and a match adds one for the caller. Blocks
 * that only the tree refers to can be evicted, from the ends of the branches unused for the longest
 * time. A use touches a node after its descendants, so the order of use lists leaves before their
 * ancestors and the next victim is found without a search.
 *
 * Not thread-safe, does no I/O, allocates no latents. After an eviction a node may be left with a
 * single child; it is not joined with it, so that each part keeps its own time of use.
 */
import { assert } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import {
  BLOCK_TOKENS,
  type BlockReferences,
  type CachedBlock,
  copyBlockTokens,
  countCommonTokens,
} from "./latent-block.ts";
import { findNearestChild, RadixNode } from "./radix-node.ts";
import { RecencyList } from "./recency-list.ts";

/** Where a prompt left what is cached: the first token that differs. */
export interface Divergence {
  /** Counted from the start of the sequence. */
  readonly position: number;
  readonly cachedToken: number;
  readonly givenToken: number;
}

export interface PrefixMatch {
  /** The blocks of the longest cached prefix; each was retained for the caller. */
  readonly blockIds: readonly number[];
  /** 64 a block. */
  readonly numTokens: number;
  /** Null when the prompt merely ends or goes on where the cached tokens do. */
  readonly divergence: Divergence | null;
}

/** Counts since construction; tokens of queries and hits are what vLLM's metrics count. */
export interface PrefixCacheCounts {
  readonly queries: number;
  readonly queriedTokens: number;
  readonly hitTokens: number;
  /** Queries that found nothing, something, every whole block. */
  readonly misses: number;
  readonly partialHits: number;
  readonly fullHits: number;
  readonly insertedBlocks: number;
  readonly evictedBlocks: number;
}

type Counters = { -readonly [Name in keyof PrefixCacheCounts]: number };

/** How far a walk along a sequence's tokens came. */
interface Walk {
  /** The last node reached and how many of its blocks are the sequence's. */
  readonly node: RadixNode;
  readonly numBlocksOfNode: number;
  readonly numBlocks: number;
  readonly divergence: Divergence | null;
}

export class PrefixCache {
  readonly #references: BlockReferences;
  readonly #roots = new Map<string, RadixNode>();
  readonly #saltOfRoot = new Map<RadixNode, string>();
  readonly #recency = new RecencyList();
  readonly #counters: Counters = {
    queries: 0,
    queriedTokens: 0,
    hitTokens: 0,
    misses: 0,
    partialHits: 0,
    fullHits: 0,
    insertedBlocks: 0,
    evictedBlocks: 0,
  };
  #numBlocks = 0;

  constructor(references: BlockReferences) {
    this.#references = references;
  }

  /** Blocks the tree refers to. */
  get numBlocks(): number {
    return this.#numBlocks;
  }

  get counts(): PrefixCacheCounts {
    return { ...this.#counters };
  }

  /**
   * The longest cached prefix of `tokens`, in whole blocks. A caller that has to compute the last
   * token's logits leaves that token out.
   */
  match(salt: string, tokens: Int32Array): PrefixMatch {
    const root = this.#roots.get(salt);
    const walk = root === undefined ? null : walkDown(root, tokens);
    const numBlocks = walk === null ? 0 : walk.numBlocks;
    this.#count(tokens.length, numBlocks);
    const divergence = walk === null ? null : walk.divergence;
    if (walk === null || numBlocks === 0) return { blockIds: [], numTokens: 0, divergence };
    const end = this.#split(walk.node, walk.numBlocksOfNode);
    this.#touchPath(end);
    const blockIds = pathBlocks(end).map((block) => block.blockId);
    for (const blockId of blockIds) this.#references.retain(blockId);
    return { blockIds, numTokens: numBlocks * BLOCK_TOKENS, divergence };
  }

  /** The blocks of the longest cached prefix; this counts as no query and no use. */
  blocksOf(salt: string, tokens: Int32Array): readonly number[] {
    const root = this.#roots.get(salt);
    if (root === undefined) return [];
    const { node, numBlocks } = walkDown(root, tokens);
    const path = pathBlocks(node).slice(0, numBlocks);
    return path.map(({ blockId }) => blockId);
  }

  /**
   * Remember the whole blocks of `tokens`, whose latents are in `blockIds`. Of a block that is
   * cached already the cached one stays. Returns the blocks as cached: a sequence that goes on may
   * take these in place of its own and so share them; they are not retained for it.
   */
  insert(salt: string, tokens: Int32Array, blockIds: readonly number[]): readonly number[] {
    const numBlocks = blockIds.length;
    assert(
      numBlocks <= floorDiv(tokens.length, BLOCK_TOKENS),
      `${tokens.length} tokens do not fill ${numBlocks} blocks`,
    );
    if (numBlocks === 0) return [];
    const whole = tokens.subarray(0, numBlocks * BLOCK_TOKENS);
    let root = this.#roots.get(salt);
    if (root === undefined) {
      root = new RadixNode(null, []);
      this.#roots.set(salt, root);
      this.#saltOfRoot.set(root, salt);
    }
    const walk = walkDown(root, whole);
    let end = walk.numBlocks === 0 ? root : this.#split(walk.node, walk.numBlocksOfNode);
    if (walk.numBlocks < numBlocks) {
      const added: CachedBlock[] = [];
      for (let index = walk.numBlocks; index < numBlocks; index++) {
        added.push({ tokens: copyBlockTokens(whole, index), blockId: blockIds[index]! });
        this.#references.retain(blockIds[index]!);
      }
      this.#numBlocks += added.length;
      this.#counters.insertedBlocks += added.length;
      end = appendBlocks(end, added);
    }
    this.#touchPath(end);
    return pathBlocks(end).map((block) => block.blockId);
  }

  /**
   * Release up to `numWanted` blocks that only the tree refers to, the least recently used first.
   * Returns how many were released.
   */
  evict(numWanted: number): number {
    let numEvicted = 0;
    for (const node of this.#recency) {
      // A removed leaf may have bared its parent, which is the next in the order or a later one.
      if (numEvicted >= numWanted) break;
      if (node.children.length === 0) numEvicted += this.#evictEnd(node, numWanted - numEvicted);
    }
    this.#numBlocks -= numEvicted;
    this.#counters.evictedBlocks += numEvicted;
    return numEvicted;
  }

  /** Forget everything, for instance when the model's weights changed. */
  clear(): void {
    for (const node of this.#recency) {
      for (const { blockId } of node.blocks) this.#references.release(blockId);
      this.#recency.remove(node);
    }
    this.#roots.clear();
    this.#saltOfRoot.clear();
    this.#numBlocks = 0;
  }

  /** Assert everything that must hold between two calls; for tests and for an idle engine. */
  checkIntegrity(): void {
    const listed = [...this.#recency];
    const place = new Map(listed.map((node, index) => [node, index]));
    const seen = new Set<number>();
    let numNodes = 0;
    const check = (node: RadixNode, parent: RadixNode | null): void => {
      assert(node.parent === parent, "a node's parent is not the one it hangs from");
      if (parent !== null) {
        numNodes++;
        assert(node.blocks.length > 0, "a node has no blocks");
        assert(place.has(node), "a node is missing in the order of use");
        assert(
          parent.parent === null || place.get(parent)! > place.get(node)!,
          "a node was used after its parent",
        );
      } else {
        assert(node.blocks.length === 0, "a root has blocks");
        assert(node.children.length > 0, "a root has no children");
      }
      for (const { tokens, blockId } of node.blocks) {
        assert(tokens.length === BLOCK_TOKENS, "a cached block is not whole");
        assert(!seen.has(blockId), `block ${blockId} stands in the tree twice`);
        assert(this.#references.countReferences(blockId) > 0, `block ${blockId} is free`);
        seen.add(blockId);
      }
      for (const [index, child] of node.children.entries()) {
        if (index > 0) assertOrdered(node.children[index - 1]!, child);
        check(child, node);
      }
    };
    for (const root of this.#roots.values()) check(root, null);
    assert(this.#saltOfRoot.size === this.#roots.size, "a root's salt was forgotten");
    assert(numNodes === listed.length, "the order of use lists a node that hangs nowhere");
    assert(seen.size === this.#numBlocks, "the number of blocks is wrong");
  }

  #count(numTokens: number, numBlocks: number): void {
    const counters = this.#counters;
    counters.queries++;
    counters.queriedTokens += numTokens;
    counters.hitTokens += numBlocks * BLOCK_TOKENS;
    if (numBlocks === 0) counters.misses++;
    else if (numBlocks === floorDiv(numTokens, BLOCK_TOKENS)) counters.fullHits++;
    else counters.partialHits++;
  }

  /** The node of exactly the first `numBlocks` blocks of a node; the rest becomes its child. */
  #split(node: RadixNode, numBlocks: number): RadixNode {
    if (numBlocks === node.blocks.length) return node;
    const parent = node.parent!;
    const upper = new RadixNode(parent, node.blocks.slice(0, numBlocks));
    parent.replaceChild(node, upper);
    node.blocks = node.blocks.slice(numBlocks);
    node.parent = upper;
    upper.children.push(node);
    this.#recency.insertAfter(node, upper);
    return upper;
  }

  /** Count a use of a node and its ancestors, these last. */
  #touchPath(end: RadixNode): void {
    for (let node = end; node.parent !== null; node = node.parent) this.#recency.touch(node);
  }

  /** Release the last blocks of a leaf that only the tree refers to; an emptied leaf goes. */
  #evictEnd(leaf: RadixNode, most: number): number {
    let numLeft = leaf.blocks.length;
    while (numLeft > 0 && leaf.blocks.length - numLeft < most) {
      const { blockId } = leaf.blocks[numLeft - 1]!;
      if (this.#references.countReferences(blockId) > 1) break;
      this.#references.release(blockId);
      numLeft--;
    }
    const numEvicted = leaf.blocks.length - numLeft;
    if (numLeft === 0) this.#removeLeaf(leaf);
    else leaf.blocks.length = numLeft;
    return numEvicted;
  }

  #removeLeaf(leaf: RadixNode): void {
    this.#recency.remove(leaf);
    const parent = leaf.parent!;
    parent.removeChild(leaf);
    if (parent.parent === null && parent.children.length === 0) {
      this.#roots.delete(this.#saltOfRoot.get(parent)!);
      this.#saltOfRoot.delete(parent);
    }
  }
}

/** Follow `tokens` down from a root, block by block. */
function walkDown(root: RadixNode, tokens: Int32Array): Walk {
  let node = root;
  let position = 0;
  for (;;) {
    const nearest = findNearestChild(node, tokens, position);
    if (nearest === null || nearest.numCommon < BLOCK_TOKENS) {
      const cached = nearest === null ? undefined : nearest.child.blocks[0]!.tokens;
      const divergence = divergenceAt(cached, tokens, position);
      const numBlocksOfNode = node.blocks.length;
      return { node, numBlocksOfNode, numBlocks: position / BLOCK_TOKENS, divergence };
    }
    node = nearest.child;
    position += BLOCK_TOKENS;
    for (let index = 1; index < node.blocks.length; index++) {
      const cached = node.blocks[index]!.tokens;
      if (countCommonTokens(cached, tokens, position) < BLOCK_TOKENS) {
        const divergence = divergenceAt(cached, tokens, position);
        return {
          node,
          numBlocksOfNode: index,
          numBlocks: position / BLOCK_TOKENS,
          divergence,
        };
      }
      position += BLOCK_TOKENS;
    }
  }
}

function divergenceAt(
  cached: Int32Array | undefined,
  tokens: Int32Array,
  start: number,
): Divergence | null {
  if (cached === undefined) return null;
  const numCommon = countCommonTokens(cached, tokens, start);
  const position = start + numCommon;
  if (position >= tokens.length) return null;
  return { position, cachedToken: cached[numCommon]!, givenToken: tokens[position]! };
}

/** Put blocks below a node; a leaf simply grows. Returns the node that ends with them. */
function appendBlocks(node: RadixNode, added: CachedBlock[]): RadixNode {
  if (node.parent !== null && node.children.length === 0) {
    node.blocks.push(...added);
    return node;
  }
  const child = new RadixNode(node, added);
  node.addChild(child);
  return child;
}

/** The blocks from the root to the end of a node. */
function pathBlocks(end: RadixNode): CachedBlock[] {
  const runs: CachedBlock[][] = [];
  for (let node: RadixNode | null = end; node !== null; node = node.parent) runs.push(node.blocks);
  return runs.reverse().flat();
}

function assertOrdered(left: RadixNode, right: RadixNode): void {
  const [a, b] = [left.blocks[0]!.tokens, right.blocks[0]!.tokens];
  const numCommon = countCommonTokens(a, b, 0);
  const isOrdered = numCommon < BLOCK_TOKENS && a[numCommon]! < b[numCommon]!;
  assert(isOrdered, "children are not in the order of their tokens");
}
