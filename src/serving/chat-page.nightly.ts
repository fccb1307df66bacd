/**
 * @file The chat page in a browser: `HADAL_BROWSER=PATH npm test -- --nightly chat-page`.
 *
 * Any Chromium will do; it is driven over its DevTools protocol. Nothing here installs one: without
 * the variable the check is skipped, and says so.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe } from "node:test";
import { type Page, type Turn, testChatPage } from "./chat-page-test-support.ts";

const BROWSER = process.env["HADAL_BROWSER"];

interface Reply {
  readonly id: number;
  readonly result?: Record<string, unknown>;
  readonly error?: { readonly message: string };
}

/** The DevTools protocol over one socket. */
class DevTools implements Disposable {
  readonly #socket: WebSocket;
  readonly #waiting = new Map<number, (reply: Reply) => void>();
  #nextId = 0;

  private constructor(socket: WebSocket) {
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => {
      const reply = JSON.parse(String(data)) as Reply;
      this.#waiting.get(reply.id)?.(reply);
      this.#waiting.delete(reply.id);
    });
  }

  static async connect(url: string): Promise<DevTools> {
    const socket = new WebSocket(url);
    await once(socket, "open");
    return new DevTools(socket);
  }

  async call(
    method: string,
    params: Readonly<Record<string, unknown>> = {},
    sessionId?: string,
  ): Promise<Record<string, unknown>> {
    const id = this.#nextId++;
    const { promise, resolve } = Promise.withResolvers<Reply>();
    this.#waiting.set(id, resolve);
    this.#socket.send(JSON.stringify({ id, method, params, sessionId }));
    const { result, error } = await promise;
    assert.equal(error, undefined, `${method}: ${error?.message}`);
    return result ?? {};
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }
}

async function openInBrowser(devTools: DevTools, url: string): Promise<Page> {
  const { targetId } = await devTools.call("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await devTools.call("Target.attachToTarget", { targetId, flatten: true });
  const call = (method: string, params: Readonly<Record<string, unknown>> = {}) =>
    devTools.call(method, params, String(sessionId));
  const evaluate = async (expression: string): Promise<unknown> => {
    const { result, exceptionDetails } = (await call("Runtime.evaluate", {
      expression,
      returnByValue: true,
    })) as { result: { value: unknown }; exceptionDetails?: unknown };
    assert.equal(exceptionDetails, undefined, `${expression}: ${JSON.stringify(exceptionDetails)}`);
    return result.value;
  };
  const find = (id: string): string => `document.getElementById(${JSON.stringify(id)})`;
  await call("Page.navigate", { url });
  while ((await evaluate(`location.href + document.readyState`)) !== `${url}/complete`);
  return {
    // As keys would: the box is focused and the text inserted.
    write: async (text) => {
      await evaluate(`${find("text")}.focus(); ${find("text")}.select()`);
      await call("Input.insertText", { text });
    },
    enterKey: async (key) => {
      await evaluate(`${find("key")}.focus()`);
      await call("Input.insertText", { text: key });
      await evaluate(`${find("key")}.blur()`);
    },
    setThinking: async (isOn) => {
      await evaluate(`${find("thinking")}.checked = ${isOn}`);
    },
    press: async (button) => {
      if (button !== "send") return void (await evaluate(`${find(button)}.click()`));
      await evaluate(`${find("text")}.focus()`);
      const enter = { key: "Enter", code: "Enter", windowsVirtualKeyCode: 13 };
      await call("Input.dispatchKeyEvent", { type: "keyDown", text: "\r", ...enter });
      await call("Input.dispatchKeyEvent", { type: "keyUp", ...enter });
    },
    written: async () => String(await evaluate(`${find("text")}.value`)),
    isShown: async (button) => Boolean(await evaluate(`${find(button)}.offsetWidth > 0`)),
    models: async () =>
      (await evaluate(`[...${find("model")}.options].map((one) => one.value)`)) as string[],
    turns: async () =>
      (await evaluate(
        `[...${find("turns")}.children].map((one) => ({
          kind: one.className.replace(/^turn /, ""),
          text: one.textContent,
          numElements: one.querySelectorAll("*").length,
        }))`,
      )) as Turn[],
    intruder: async () => await evaluate("globalThis.intruder"),
    async [Symbol.asyncDispose](): Promise<void> {
      await devTools.call("Target.closeTarget", { targetId });
    },
  };
}

async function startBrowser(path: string, profile: string): Promise<[ChildProcess, DevTools]> {
  const child = spawn(
    path,
    [
      ...["--headless", "--no-sandbox", "--no-zygote", "--disable-gpu", "--no-first-run"],
      ...["--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"],
    ],
    { stdio: ["ignore", "ignore", "pipe"] },
  );
  let said = "";
  child.stderr!.setEncoding("utf8");
  for await (const part of child.stderr! as AsyncIterable<string>) {
    said += part;
    const url = /ws:\/\/\S+/.exec(said)?.[0];
    if (url === undefined) continue;
    return [child, await DevTools.connect(url)];
  }
  assert.fail(`the browser ended: ${said}`);
}

describe("the chat page in a browser", {
  skip: BROWSER === undefined && "no HADAL_BROWSER",
}, () => {
  let child: ChildProcess;
  let devTools: DevTools;
  const profile = mkdtempSync(join(tmpdir(), "hadal-browser-"));
  before(async () => {
    [child, devTools] = await startBrowser(BROWSER!, profile);
  });
  after(async () => {
    devTools[Symbol.dispose]();
    child.kill("SIGKILL");
    await once(child, "exit");
    rmSync(profile, { recursive: true, force: true });
  });
  testChatPage((url) => openInBrowser(devTools, url));
});
