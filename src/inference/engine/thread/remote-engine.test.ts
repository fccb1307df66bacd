/** @file An engine's thread that dies or hangs: its requests fail clearly, and so do later ones. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { siblingModule } from "../../../base/modules.ts";
import type { Tokenizer } from "../../../tokenizer/tokenizer.ts";
import type { Engine, EngineRequest } from "../api.ts";
import { DIE, HANG, TAKE_LONG } from "./mortal-engine.fixture.ts";
import { openRemoteEngine } from "./remote-engine.ts";

const NO_TOKENIZER = null as unknown as Tokenizer;

function open(): Promise<Engine> {
  const worker = new Worker(siblingModule("./mortal-engine.fixture", import.meta.url));
  return openRemoteEngine(worker, NO_TOKENIZER, { pingMs: 20, unansweredMax: 10 });
}

async function ask(engine: Engine, token: number): Promise<string> {
  const request = { prompt: Int32Array.of(token) } as EngineRequest;
  let last = "";
  for await (const event of engine.generate(request, new AbortController().signal)) {
    last = event.kind;
  }
  return last;
}

describe("an engine in a thread", () => {
  it("that dies fails what it was doing and what comes after", async () => {
    const engine = await open();
    assert.equal(await ask(engine, 0), "finished");
    const other = assert.rejects(ask(engine, DIE), { code: "engine.closed", message: /a bug/ });
    await assert.rejects(ask(engine, DIE), { code: "engine.closed" });
    await other;
    await assert.rejects(ask(engine, 0), { code: "engine.closed", message: /a bug/ });
    await engine.close();
  });

  it("whose step takes longer than it is waited for is not taken for one that hangs", async () => {
    const engine = await open();
    assert.equal(await ask(engine, TAKE_LONG), "finished");
    await engine.close();
  });

  it("that hangs is ended, and fails like one that died", async () => {
    const engine = await open();
    await assert.rejects(ask(engine, HANG), { code: "engine.closed", message: /no sign of life/ });
    await assert.rejects(ask(engine, 0), { code: "engine.closed", message: /no sign of life/ });
    await engine.close();
  });
});
