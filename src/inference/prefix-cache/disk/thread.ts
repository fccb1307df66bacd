/** @file The thread of a disk tier: owns the block store and does all its blocking work. */
import { parentPort, workerData } from "node:worker_threads";
import { assert, defined } from "../../../base/errors.ts";
import type { BlockKey } from "./block-file.ts";
import { BlockStore } from "./block-store.ts";
import type { FromThread, StoreSettings, ToThread } from "./messages.ts";

const port = defined(parentPort, "the thread that started this worker");
const store = new BlockStore(workerData as StoreSettings);
let planned: readonly BlockKey[] = [];

function post(message: FromThread, transfer: ArrayBuffer[] = []): void {
  port.postMessage(message, transfer);
}

function postCounts(): void {
  post({ kind: "counts", counts: store.counts });
}

function load(message: Extract<ToThread, { kind: "load" }>): void {
  let index = 0;
  for (const key of store.keys(message.salt, message.tokens)) {
    if (index++ < message.start) continue;
    const payload = Date.now() < message.deadline ? store.load(key) : null;
    if (payload === null) break;
    post({ kind: "block", id: message.id, payload }, [payload.buffer]);
  }
  postCounts();
  post({ kind: "loadEnd", id: message.id });
}

function plan(message: Extract<ToThread, { kind: "plan" }>): void {
  planned = [...store.keys(message.salt, message.tokens)];
  const missing = [...planned.keys()].filter((index) => !store.has(planned[index]!));
  post({ kind: "planned", missing });
}

postCounts();
port.on("message", (message: ToThread) => {
  if (message.kind === "load") load(message);
  else if (message.kind === "plan") plan(message);
  else if (message.kind === "write") {
    const key = planned[message.blockIndex];
    assert(key !== undefined, `block ${message.blockIndex} was not planned`);
    const isStored = store.store(key, message.payload);
    postCounts();
    post({ kind: "written", isStored });
  } else port.close();
});
