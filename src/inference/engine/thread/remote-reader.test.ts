/** @file A reader at the other end of a port: what it gives comes over, and its end is noticed. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MessageChannel } from "node:worker_threads";
import type { Engine, PrefixPart, PrefixReader, PrefixRequest } from "../api.ts";
import { answerOn } from "./engine-host.ts";
import { RemoteReader } from "./remote-reader.ts";

const NEVER = new AbortController().signal;
const ASKED: PrefixRequest = {
  tokens: Int32Array.from({ length: 129 }, (_, index) => index),
  tenant: "",
  start: 1,
  drafts: false,
};

/** Gives block after block of ones, and waits for ever behind the last. */
async function* readPrefix({ tokens, start }: PrefixRequest): AsyncGenerator<PrefixPart> {
  yield { kind: "read", cachedTokens: tokens[1]! };
  for (let blockIndex = start; blockIndex < 2; blockIndex++) {
    yield { kind: "block", blockIndex, payload: new Uint8Array(10).fill(blockIndex) };
  }
  if (tokens[0] === 1) await new Promise(() => {});
}

function open(): { reader: RemoteReader; other: MessageChannel["port1"] } {
  const { port1, port2 } = new MessageChannel();
  answerOn(port1, { readPrefix } as unknown as Engine & PrefixReader);
  return { reader: new RemoteReader(port2), other: port1 };
}

async function collect(reader: RemoteReader, asked: PrefixRequest): Promise<PrefixPart[]> {
  const parts: PrefixPart[] = [];
  for await (const part of reader.readPrefix(asked, NEVER)) parts.push(part);
  return parts;
}

describe("a remote reader", () => {
  it("hands over what the other side reads", async () => {
    const { reader, other } = open();
    assert.deepEqual(await collect(reader, ASKED), [
      { kind: "read", cachedTokens: 1 },
      { kind: "block", blockIndex: 1, payload: new Uint8Array(10).fill(1) },
    ]);
    other.close();
  });

  it("fails when the other side ends, and from then on", async () => {
    const { reader, other } = open();
    const hanging = { ...ASKED, tokens: ASKED.tokens.with(0, 1) };
    const parts: PrefixPart[] = [];
    const reading = async (): Promise<void> => {
      for await (const part of reader.readPrefix(hanging, NEVER)) {
        parts.push(part);
        if (part.kind === "block") other.close();
      }
    };
    await assert.rejects(reading(), { code: "engine.closed" });
    assert.equal(parts.length, 2);
    await assert.rejects(collect(reader, ASKED), { code: "engine.closed" });
  });
});
