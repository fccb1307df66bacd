/**
 * @file Nodes in the order of their last use, as a doubly linked list: every operation takes
 * constant time.
 */
import type { RadixNode } from "./radix-node.ts";

export class RecencyList {
  #least: RadixNode | null = null;
  #most: RadixNode | null = null;

  /** The node that was unused for the longest time. */
  get least(): RadixNode | null {
    return this.#least;
  }

  /** Make a node, listed already or not, the one used last. */
  touch(node: RadixNode): void {
    if (this.#most === node) return;
    this.remove(node);
    node.lessRecent = this.#most;
    if (this.#most !== null) this.#most.moreRecent = node;
    this.#most = node;
    this.#least ??= node;
  }

  remove(node: RadixNode): void {
    if (node.lessRecent !== null) node.lessRecent.moreRecent = node.moreRecent;
    else if (this.#least === node) this.#least = node.moreRecent;
    if (node.moreRecent !== null) node.moreRecent.lessRecent = node.lessRecent;
    else if (this.#most === node) this.#most = node.lessRecent;
    node.lessRecent = null;
    node.moreRecent = null;
  }

  /** Put a node that is not listed right behind (more recent than) `other`. */
  insertAfter(other: RadixNode, node: RadixNode): void {
    node.lessRecent = other;
    node.moreRecent = other.moreRecent;
    if (other.moreRecent !== null) other.moreRecent.lessRecent = node;
    else this.#most = node;
    other.moreRecent = node;
  }

  /** From the least recently used on; the node given out last may be removed or touched. */
  *[Symbol.iterator](): Generator<RadixNode> {
    for (let node = this.#least; node !== null; ) {
      const next: RadixNode | null = node.moreRecent;
      yield node;
      node = next;
    }
  }
}
