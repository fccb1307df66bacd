/** @file The rings between a rank and its communication thread. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Mailbox, TICKETS } from "./mailbox.ts";

test("its rings hold every ticket, and their counters do not grow with the messages", () => {
  const rank = new Mailbox(2);
  const other = new Mailbox(2, rank.buffer);
  const counters = new Int32Array(rank.buffer, 0, 16);
  const tickets = Array.from({ length: TICKETS }, (_, ticket) => ticket);
  for (let round = 0; round < 5; round++) {
    const commands = tickets.map((ticket) => {
      const place = { tag: round, byteOffset: 2 ** 32 - 64 * (ticket + 1), byteLength: 2 ** 31 };
      return { kind: "send", ticket, peer: 1, ...place } as const;
    });
    for (const command of commands) rank.post(command);
    for (const command of commands) {
      assert.deepEqual(other.take(), command);
      other.finish(command.ticket);
    }
    assert.equal(other.take(), null);
    assert.deepEqual(
      tickets.map(() => rank.takeFinished()),
      tickets,
    );
    assert.equal(rank.takeFinished(), null);
  }
  // As many messages as a day has would leave 32 bits otherwise.
  assert.ok(Math.max(...counters) <= TICKETS, `counters: ${counters}`);
});
