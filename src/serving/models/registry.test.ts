/** @file Names of models: which mean what, when they are loaded, what is refused. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../../base/errors.ts";
import { nextTurn } from "../../inference/session.ts";
import { deepseekFormat } from "../chat/deepseek-format.ts";
import { FakeEngine } from "../fake-engine.fixture.ts";
import { tinyTokenizer } from "../test-support.ts";
import { type ModelLoader, ModelRegistry } from "./registry.ts";

function loaderOf(estimateBytes: (path: string) => number): ModelLoader & { opened: string[] } {
  const tokenizer = tinyTokenizer();
  const opened: string[] = [];
  return {
    opened,
    estimateBytes,
    availableBytes: () => 1000,
    open: async ({ id }) => {
      opened.push(id);
      const engine = new FakeEngine({ tokenizer, says: () => "x" });
      return { id, engine, format: deepseekFormat(tokenizer) };
    },
  };
}

const MODELS = [
  { id: "a", path: "1" },
  { id: "b", path: "2000" },
];

test("a model is loaded once, however many ask for it at once", async () => {
  const loader = loaderOf(Number);
  await using models = new ModelRegistry(loader, MODELS, new Map());
  const [first, second] = await Promise.all([models.load("a"), models.load("a")]);
  assert.equal(first, second);
  assert.deepEqual(loader.opened, ["a"]);
  assert.deepEqual(
    models.list().map(({ id, state }) => [id, state]),
    [
      ["a", "loaded"],
      ["b", "unloaded"],
    ],
  );
});

test("a model whose engine died is opened again, until it has died too often", async () => {
  const loader = loaderOf(() => 1);
  await using models = new ModelRegistry(loader, MODELS, new Map());
  const stateOf = (): unknown => models.list()[0];
  const die = async (): Promise<void> => {
    (models.find("a").engine as FakeEngine).isClosed = true;
    // Several requests notice at once.
    await Promise.all([models.revive(), models.revive()]);
  };
  await models.load("a");
  await models.revive();
  assert.deepEqual(loader.opened, ["a"]);
  for (let deaths = 1; deaths <= 3; deaths++) {
    await die();
    assert.deepEqual(stateOf(), { id: "a", state: "loaded", estimatedBytes: 1, deaths });
  }
  await die();
  assert.deepEqual(stateOf(), { id: "a", state: "failed", estimatedBytes: 1, deaths: 4 });
  assert.throws(() => models.find("a"), /is not loaded/);
  assert.deepEqual(loader.opened, ["a", "a", "a", "a"]);
  await models.load("a");
  assert.equal(models.list()[0]!.state, "loaded");
});

test("a model that cannot be opened again has failed, and nothing else happens", async () => {
  const loader = loaderOf(() => 1);
  let isGone = false;
  const open: ModelLoader["open"] = async (declaration) => {
    if (isGone) throw new OperationalError("checkpoint.missing", "the checkpoint is gone");
    return await loader.open(declaration);
  };
  await using models = new ModelRegistry({ ...loader, open }, MODELS, new Map());
  await models.load("a");
  (models.find("a").engine as FakeEngine).isClosed = true;
  isGone = true;
  // A rejection that nobody handles would end the server: it fails this test.
  await models.revive();
  await nextTurn();
  assert.equal(models.list()[0]!.state, "failed");
  await assert.rejects(models.load("a"), { code: "checkpoint.missing" });
});

test("a model that the memory does not hold is refused with both sizes", async () => {
  await using models = new ModelRegistry(loaderOf(Number), MODELS, new Map());
  await assert.rejects(models.load("b"), /b needs about 1 MiB, and 1 MiB are free/);
  assert.throws(() => models.find("b"), /is not loaded/);
});

test("aliases and their beginnings mean a model; a model's own name comes first", async () => {
  const aliases = new Map([
    ["claude*", "a"],
    ["other", "b"],
  ]);
  await using models = new ModelRegistry(
    loaderOf(() => 1),
    MODELS,
    aliases,
  );
  assert.equal(models.resolve("claude-opus"), "a");
  assert.equal(models.resolve("other"), "b");
  assert.equal(models.resolve("b"), "b");
  for (const name of ["c", "claud", "", "a ", "A", "../a"]) {
    assert.throws(() => models.resolve(name), /there is no model/, name);
  }
});

test("unloading ends what renders the model's chats", async () => {
  let numClosed = 0;
  const loader = loaderOf(() => 1);
  const open: ModelLoader["open"] = async (declaration) => {
    const model = await loader.open(declaration);
    return { ...model, format: { ...model.format, close: async () => void numClosed++ } };
  };
  await using models = new ModelRegistry({ ...loader, open }, MODELS, new Map());
  await models.load("a");
  await models.unload("a");
  assert.equal(numClosed, 1);
});

test("unloading closes the engine, and the model can be loaded again", async () => {
  await using models = new ModelRegistry(
    loaderOf(() => 1),
    MODELS,
    new Map(),
  );
  const { engine } = await models.load("a");
  await models.unload("a");
  assert.ok((engine as FakeEngine).isClosed);
  assert.notEqual((await models.load("a")).engine, engine);
});

test("two models of one name, an alias of none and a name that is a path are refused", () => {
  const loader = loaderOf(() => 1);
  const refused = (models: typeof MODELS, aliases: [string, string][], message: RegExp): void =>
    assert.throws(() => new ModelRegistry(loader, models, new Map(aliases)), message);
  refused([MODELS[0]!, MODELS[0]!], [], /two models are named a; .*--model NAME=PATH$/);
  refused(MODELS, [["x", "none"]], /alias x: there is no model none; there is a, b$/);
  for (const id of ["", "../x", "a b", ".x", "x".repeat(200)]) {
    assert.throws(() => new ModelRegistry(loader, [{ id, path: "1" }], new Map()), /name/, id);
  }
});
