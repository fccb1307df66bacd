/**
 * @file The file of one latent block, and the name under which it is found.
 *
 *     bytes         what
 *     0             "HADALKV1"
 *     8             u32: 64, positions of a block
 *     12            u32: the block's index in its sequence
 *     16            u64: bytes of the payload, P
 *     24            SHA-256 of the model's identity
 *     56            SHA-256 of the salt
 *     88            chain hash of the blocks before
 *     120           the block's tokens, 64 × i32
 *     376           payload
 *     376 + P       SHA-256 of everything before
 *
 * Little-endian. The chain hash of a block is the SHA-256 of the 376 bytes of its header, which
 * holds the chain hash before it: it commits to the model, the salt and every token so far. Its
 * first half, in hexadecimal, is the file's name.
 *
 * A reader knows what it is looking for, so it knows the whole header and the length of the file
 * beforehand and compares them. No field of a file decides how much is allocated, and a file under
 * a wrong name serves nothing.
 */
import { createHash } from "node:crypto";
import { BLOCK_TOKENS } from "../latent-block.ts";

const MAGIC = "HADALKV1";
const HASH_BYTES = 32;
export const HEADER_BYTES: number = 120 + BLOCK_TOKENS * 4;

/** Bytes of a file beside its payload. */
export const OVERHEAD_BYTES: number = HEADER_BYTES + HASH_BYTES;

/** What all blocks of a store have in common. */
export interface BlockKind {
  readonly modelHash: Uint8Array;
  readonly payloadBytes: number;
}

/** The header of a block, and the name of its file. */
export interface BlockKey {
  readonly header: Uint8Array;
  readonly name: string;
}

export function hashText(text: string): Uint8Array {
  return createHash("sha256").update(text, "utf8").digest();
}

/** The keys of the whole blocks of `tokens`, in order, as they are asked for. */
export function* blockKeys(
  kind: BlockKind,
  salt: string,
  tokens: Int32Array,
): Generator<BlockKey, void> {
  const saltHash = hashText(salt);
  let chain: Uint8Array = new Uint8Array(HASH_BYTES);
  for (let index = 0; (index + 1) * BLOCK_TOKENS <= tokens.length; index++) {
    const header = new Uint8Array(HEADER_BYTES);
    const view = new DataView(header.buffer);
    header.set(new TextEncoder().encode(MAGIC), 0);
    view.setUint32(8, BLOCK_TOKENS, true);
    view.setUint32(12, index, true);
    view.setBigUint64(16, BigInt(kind.payloadBytes), true);
    header.set(kind.modelHash, 24);
    header.set(saltHash, 56);
    header.set(chain, 88);
    for (let i = 0; i < BLOCK_TOKENS; i++) {
      view.setInt32(120 + 4 * i, tokens[index * BLOCK_TOKENS + i]!, true);
    }
    chain = createHash("sha256").update(header).digest();
    yield { header, name: Buffer.from(chain.subarray(0, 16)).toString("hex") };
  }
}

export function checksumOf(header: Uint8Array, payload: Uint8Array): Uint8Array {
  return createHash("sha256").update(header).update(payload).digest();
}

/** The payload of a file's bytes, or null when they are not exactly the block that is wanted. */
export function readPayload(key: BlockKey, file: Uint8Array): Uint8Array | null {
  const payloadEnd = file.length - HASH_BYTES;
  if (payloadEnd < HEADER_BYTES) return null;
  if (Buffer.compare(file.subarray(0, HEADER_BYTES), key.header) !== 0) return null;
  const payload = file.subarray(HEADER_BYTES, payloadEnd);
  const checksum = checksumOf(key.header, payload);
  return Buffer.compare(file.subarray(payloadEnd), checksum) === 0 ? payload : null;
}
