/**
 * @file What the chat page must do, in whatever runs its script: a stand-in for a document in the
 * suite, a browser in the nightly checks.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { EngineRequest } from "../inference/engine/api.ts";
import { apiKey } from "./http/keys.ts";
import { startTestServer, type TestServer, type TestServerOptions } from "./test-support.ts";

export interface Turn {
  /** The classes of its element but the common one: "user", "content", "note error". */
  readonly kind: string;
  readonly text: string;
  /** Elements inside: there must be none. */
  readonly numElements: number;
}

/** The page as a person has it. */
export interface Page extends AsyncDisposable {
  write(text: string): Promise<void>;
  enterKey(key: string): Promise<void>;
  setThinking(isOn: boolean): Promise<void>;
  press(button: "send" | "stop" | "clear"): Promise<void>;
  /** What is in the box. */
  written(): Promise<string>;
  isShown(button: "send" | "stop"): Promise<boolean>;
  models(): Promise<readonly string[]>;
  turns(): Promise<readonly Turn[]>;
  /** A variable that no script but the page's could have set. */
  intruder(): Promise<unknown>;
}

const KEY = "0123456789abcdef";
const HOSTILE =
  "<script>globalThis.intruder = 1</script><img src=x onerror='globalThis.intruder = 2'>" +
  '<a href="javascript:intruder=3">x</a> </div></main> &lt;b&gt; ```html <b>';

/** Registers a test: a server, and the page that it serves. */
type Scenario = (
  name: string,
  options: TestServerOptions,
  work: (page: Page, server: TestServer) => Promise<void>,
) => void;

/** Registers the tests of a page that `open` opens at an address. */
export function testChatPage(open: (url: string) => Promise<Page>): void {
  const scenario: Scenario = (name, options, work) => {
    test(name, async () => {
      await using server = await startTestServer(options);
      await using page = await open(server.url);
      await work(page, server);
    });
  };
  testAnswers(scenario);
  testTroubles(scenario);
}

function testAnswers(scenario: Scenario): void {
  const says = ({ prompt }: EngineRequest): string => `Read ${prompt.length}.`;
  scenario("streams an answer, and goes on from it", { says }, async (page, { engine }) => {
    await settled(async () => (await page.models()).length === 1);
    await page.write("Hello");
    await page.press("send");
    await answered(page, 1);
    assert.deepEqual(await kinds(page), ["user", "content", "note"]);
    const [user, content, note] = await page.turns();
    assert.equal(user!.text, "Hello");
    assert.match(content!.text, /^Read \d+\.$/);
    assert.match(note!.text, /tokens read, .* a second/);
    assert.equal(await page.written(), "");
    await page.write("Again");
    await page.press("send");
    await answered(page, 2);
    const prompt = engine.tokenizer.decode(engine.requests[1]!.prompt);
    assert.match(prompt, /Hello<｜Assistant｜>Read \d+\.<｜end▁of▁sentence｜><｜User｜>Again/);
    await page.press("clear");
    assert.deepEqual(await page.turns(), []);
    await page.write("New");
    await page.press("send");
    await answered(page, 1);
    assert.doesNotMatch(engine.tokenizer.decode(engine.requests[2]!.prompt), /Hello|Again/);
  });

  const thinks = { says: "I count.\n</think>\n\nFour." };
  scenario("shows thinking apart, and does not send it back", thinks, async (page, { engine }) => {
    await page.setThinking(true);
    await page.write("Count");
    await page.press("send");
    await answered(page, 1);
    assert.deepEqual(await kinds(page), ["user", "reasoning", "content", "note"]);
    const [, reasoning, content] = await page.turns();
    assert.equal(reasoning!.text.trim(), "I count.");
    assert.equal(content!.text.trim(), "Four.");
    await page.write("And");
    await page.press("send");
    await answered(page, 2);
    assert.doesNotMatch(engine.tokenizer.decode(engine.requests[1]!.prompt), /I count/);
  });

  scenario("shows what a model writes as text, whatever it is", { says: HOSTILE }, async (page) => {
    await page.write(HOSTILE);
    await page.press("send");
    await answered(page, 1);
    const turns = await page.turns();
    assert.deepEqual([turns[0]!.text, turns[1]!.text], [HOSTILE, HOSTILE]);
    assert.ok(turns.every(({ numElements }) => numElements === 0));
    assert.equal(await page.intruder(), undefined);
  });
}

function testTroubles(scenario: Scenario): void {
  let release = (): void => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const endless = { says: "word ".repeat(50), beforeToken: heldAt(40, held) };
  scenario("stops, keeps what came, and can ask again", endless, async (page, { engine }) => {
    await page.write("Go on");
    await page.press("send");
    await settled(async () => ((await page.turns())[1]?.text ?? "").includes("word"));
    assert.deepEqual([await page.isShown("stop"), await page.isShown("send")], [true, false]);
    await page.press("stop");
    await settled(async () => (await kinds(page)).includes("note"));
    release();
    await settled(async () => engine.numRunning === 0);
    const turns = await page.turns();
    assert.match(turns[1]!.text, /^word/);
    assert.equal(turns[2]!.text, "stopped");
    await page.write("More");
    await page.press("send");
    await settled(async () => (await kinds(page)).filter((kind) => kind === "note").length === 2);
    assert.match(engine.tokenizer.decode(engine.requests[1]!.prompt), /word.*More/);
  });

  scenario("shows what goes wrong, and keeps the question", {}, async (page, { engine }) => {
    await settled(async () => (await page.models()).length === 1);
    engine.isClosed = true;
    await page.write("Hello?");
    await page.press("send");
    await settled(async () => (await kinds(page)).includes("note error"));
    assert.match((await page.turns()).at(-1)!.text, /closed/);
    assert.equal(await page.written(), "Hello?");
  });

  const keyed = { keys: [apiKey("me", KEY)] };
  scenario("says when a key is needed, and sends the one given", keyed, async (page) => {
    await settled(async () => (await kinds(page)).includes("note error"));
    assert.match((await page.turns())[0]!.text, /no valid API key/);
    await page.enterKey(KEY);
    await settled(async () => (await page.models()).length === 1);
    await page.press("clear");
    await page.write("Hello");
    await page.press("send");
    await answered(page, 1);
  });
}

/** An engine that waits before one token of its first request. */
function heldAt(token: number, held: Promise<void>) {
  let isFirst = true;
  return async (_: EngineRequest, index: number): Promise<void> => {
    if (!isFirst || index !== token) return;
    isFirst = false;
    await held;
  };
}

async function kinds(page: Page): Promise<string[]> {
  return (await page.turns()).map(({ kind }) => kind);
}

/** So many answers are complete. */
async function answered(page: Page, count: number): Promise<void> {
  await settled(async () => {
    const notes = (await kinds(page)).filter((kind) => kind === "note").length;
    return notes === count && (await page.isShown("send"));
  });
}

/** Waits until something holds; the test's own time limit ends it if it never does. */
async function settled(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 5));
}
