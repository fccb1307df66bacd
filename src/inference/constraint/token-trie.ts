/**
 * @file The vocabulary as a trie in one walk's order: a node's descendants stand right after it.
 *
 * So a walk that finds a byte refused jumps over all tokens that go on from there. Tokens without
 * bytes (added tokens, ids nobody uses) are not in it. Made once a tokenizer and shared.
 */

export class TokenTrie {
  readonly vocabSize: number;
  readonly numNodes: number;
  /** By node: the byte that leads to it, its distance from the root, the end of its descendants. */
  readonly byte: Uint8Array;
  readonly depth: Uint16Array;
  readonly end: Int32Array;
  /** Tokens of node i: `tokens` from tokenStart[i] up to tokenStart[i + 1]. */
  readonly tokenStart: Int32Array;
  readonly tokens: Int32Array;
  readonly depthMax: number;
  readonly #tokenBytes: readonly (Uint8Array | undefined)[];

  constructor(tokenBytes: readonly (Uint8Array | undefined)[]) {
    this.#tokenBytes = tokenBytes;
    this.vocabSize = tokenBytes.length;
    const ids = [...tokenBytes.keys()].filter((id) => (tokenBytes[id]?.length ?? 0) > 0);
    ids.sort((a, b) => compareBytes(tokenBytes[a]!, tokenBytes[b]!));
    const nodes = { byte: [0], depth: [0], end: [0], tokenStart: [0] };
    let path: number[] = [0];
    let previous = new Uint8Array(0);
    for (const [index, id] of ids.entries()) {
      const bytes = tokenBytes[id]!;
      let common = 0;
      while (common < previous.length && previous[common] === bytes[common]) common++;
      for (const node of path.slice(common + 1)) nodes.end[node] = nodes.byte.length;
      path = path.slice(0, common + 1);
      for (let depth = common + 1; depth <= bytes.length; depth++) {
        path.push(nodes.byte.push(bytes[depth - 1]!) - 1);
        nodes.depth.push(depth);
        nodes.end.push(0);
        nodes.tokenStart.push(index);
      }
      previous = bytes as Uint8Array<ArrayBuffer>;
    }
    for (const node of path) nodes.end[node] = nodes.byte.length;
    this.numNodes = nodes.byte.length;
    this.byte = Uint8Array.from(nodes.byte);
    this.depth = Uint16Array.from(nodes.depth);
    this.end = Int32Array.from(nodes.end);
    this.tokenStart = Int32Array.from([...nodes.tokenStart, ids.length]);
    this.tokens = Int32Array.from(ids);
    this.depthMax = ids.reduce((most, id) => Math.max(most, tokenBytes[id]!.length), 0);
  }

  /** The bytes of a token; none for an added token. */
  tokenBytes(token: number): Uint8Array | undefined {
    return this.#tokenBytes[token];
  }
}

function compareBytes(a: Uint8Array, b: Uint8Array): number {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) if (a[i] !== b[i]) return a[i]! - b[i]!;
  return a.length - b.length;
}
