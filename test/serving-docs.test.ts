/** @file docs/serving.md says what the server does: its tables are held against the code. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { openEngine, openEngineHere } from "../src/serving/models/open-engine.ts";
import { ROUTES } from "../src/serving/routes.ts";
import { errorOf, post, raw, startTestServer, TINY_CHAT } from "../src/serving/test-support.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const PAGE = readFileSync(join(ROOT, "docs/serving.md"), "utf8");

/** The rows of the first table after a heading, cell by cell. */
function tableOf(heading: string): string[][] {
  const [, after] = PAGE.split(`# ${heading}\n`);
  assert.ok(after !== undefined, `no heading ${heading}`);
  const table = /(?:^\|.*\n)+/m.exec(after)![0];
  const rows = table.trim().split("\n").slice(2);
  return rows.map((row) => row.split("|").slice(1, -1));
}

/** What stands between backticks in the first cells of a table. */
function namesOf(heading: string): string[] {
  return tableOf(heading)
    .flatMap(([first]) => [...first!.matchAll(/`([^`]+)`/g)].map(([, name]) => name!))
    .sort();
}

test("the fields of every protocol are those that the server knows", async () => {
  await using server = await startTestServer();
  const messages = [{ role: "user", content: "x" }];
  const knownBy = async (path: string, fields: object): Promise<string[]> => {
    const reply = await post(server.url + path, { model: "tiny", ...fields, unheardOf: 1 });
    const message = String(errorOf(reply)["message"]);
    const [, names] = /^unheardOf is not supported here; .*known here: (.*)$/.exec(message)!;
    return names!.split(", ");
  };
  assert.deepEqual(
    namesOf("Chat completions"),
    await knownBy("/v1/chat/completions", { messages }),
  );
  assert.deepEqual(namesOf("Completions"), await knownBy("/v1/completions", { prompt: "x" }));
  assert.deepEqual(namesOf("Responses"), await knownBy("/v1/responses", { input: "x" }));
  assert.deepEqual(namesOf("Messages"), await knownBy("/v1/messages", { messages, max_tokens: 1 }));
  assert.deepEqual(namesOf("Embeddings"), await knownBy("/v1/embeddings", { input: "x" }));
  const tokens = [
    ...(await knownBy("/tokenize", { prompt: "x" })),
    ...(await knownBy("/detokenize", { tokens: [5] })),
  ];
  const documented = namesOf("Tokens").filter((name) => !name.startsWith("/"));
  assert.deepEqual(documented, [...new Set(tokens)].sort());
});

test("the paths are the server's, but for the other bases of the same", () => {
  const main = ROUTES.filter(({ path }) => {
    const isOther = /^\/(beta|anthropic)\//.test(path);
    return !isOther && !ROUTES.some((other) => other.path === `/v1${path}`);
  });
  assert.deepEqual(namesOf("Paths"), main.map(({ method, path }) => `${method} ${path}`).sort());
});

test("the metrics are those of the server and of an engine with a disk", async () => {
  await using server = await startTestServer();
  await raw({ port: server.port, path: "/health" });
  const { text } = await raw({ port: server.port, path: "/metrics" });
  const ofServer = [...text.matchAll(/^# TYPE hadal_(\w+)/gm)].map(([, name]) => name!);
  const folder = mkdtempSync(join(tmpdir(), "hadal-docs-"));
  try {
    const prefixFolder = { folder, bytesMax: 2 ** 20 };
    const engine = await openEngineHere(TINY_CHAT, { HADAL_THREADS: "1" }, { prefixFolder });
    const ofEngine = (await engine.metrics()).map(({ name }) => name);
    await engine.close();
    const documented = tableOf("Metrics").flatMap(([names]) => names!.trim().split(", "));
    assert.deepEqual(documented.sort(), [...new Set([...ofServer, ...ofEngine])].sort());
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

test("every class of hostile requests has the test that is named", () => {
  for (const [, cell] of tableOf("Hostile requests")) {
    const [, path, name] = /^ `([^`]+)`: (.*) $/.exec(cell!)!;
    const source = readFileSync(join(ROOT, "src", path!), "utf8");
    assert.ok(source.includes(`"${name}"`), `${path} has no test "${name}"`);
  }
});

test("the metrics of expert ranks are those that only an engine over ranks has", async () => {
  const env = { HADAL_THREADS: "1" };
  const experts = { numRanks: 2, numRedundant: 0, rebalanceTokens: 7 };
  const engines = [
    await openEngineHere(TINY_CHAT, env),
    await openEngine(TINY_CHAT, env, { prefixFolder: null, role: "both", experts }),
  ];
  const [plain, ofRanks] = await Promise.all(
    engines.map(async (engine) => {
      const names = (await engine.metrics()).map(({ name }) => name);
      await engine.close();
      return new Set(names);
    }),
  );
  const documented = tableOf("Metrics of expert ranks").flatMap(([names]) =>
    names!.trim().split(", "),
  );
  assert.deepEqual(documented.sort(), [...ofRanks!].filter((name) => !plain!.has(name)).sort());
});
