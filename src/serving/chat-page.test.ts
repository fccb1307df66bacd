/**
 * @file The chat page's own script, run over a stand-in for the few parts of a document that it
 * uses. In a browser it is checked by chat-page.nightly.ts.
 */
import { readFileSync } from "node:fs";
import { describe } from "node:test";
import { createContext, runInContext } from "node:vm";
import { type Page, testChatPage } from "./chat-page-test-support.ts";

type Listener = (event: Record<string, unknown>) => void;

class StandInElement {
  value = "";
  checked = false;
  hidden = false;
  textContent = "";
  className = "";
  children: StandInElement[] = [];
  readonly #listeners = new Map<string, Listener[]>();

  addEventListener(kind: string, listener: Listener): void {
    this.#listeners.set(kind, [...(this.#listeners.get(kind) ?? []), listener]);
  }

  dispatch(kind: string): void {
    const event = { preventDefault: () => {} };
    for (const listener of this.#listeners.get(kind) ?? []) listener(event);
  }

  append(child: StandInElement): void {
    this.children.push(child);
  }

  replaceChildren(...children: StandInElement[]): void {
    this.children = children;
    // A select shows its first option.
    this.value = children[0]?.value ?? "";
  }
}

async function openStandIn(url: string): Promise<Page> {
  const html = readFileSync(new URL("./chat-page.html", import.meta.url), "utf8");
  const script = /<script>([\s\S]*)<\/script>/.exec(html)![1]!;
  const ids = [...html.matchAll(/ id="(\w+)"/g)].map(([, id]) => id!);
  const elements = new Map(ids.map((id) => [id, new StandInElement()]));
  const element = (id: string): StandInElement => {
    const found = elements.get(id);
    if (found === undefined) throw new Error(`the page has no element ${id}`);
    return found;
  };
  const context = createContext({
    document: {
      getElementById: element,
      createElement: () => new StandInElement(),
      body: { scrollHeight: 0 },
    },
    Option: class extends StandInElement {
      constructor(text: string, value: string) {
        super();
        this.textContent = text;
        this.value = value;
      }
    },
    fetch: (path: string, init: RequestInit) => fetch(url + path, init),
    scrollTo: () => {},
    ...{ performance, TextDecoderStream, AbortController },
  });
  runInContext(script, context);
  return {
    write: async (text) => {
      element("text").value = text;
    },
    enterKey: async (key) => {
      element("key").value = key;
      element("key").dispatch("change");
    },
    setThinking: async (isOn) => {
      element("thinking").checked = isOn;
    },
    press: async (button) => {
      if (button === "send") element("form").dispatch("submit");
      else element(button).dispatch("click");
    },
    written: async () => element("text").value,
    isShown: async (button) => !element(button).hidden,
    models: async () => element("model").children.map(({ value }) => value),
    turns: async () =>
      element("turns").children.map(({ className, textContent, children }) => ({
        kind: className.replace(/^turn /, ""),
        text: textContent,
        numElements: children.length,
      })),
    intruder: async () => (context as Record<string, unknown>)["intruder"],
    async [Symbol.asyncDispose](): Promise<void> {
      element("clear").dispatch("click");
    },
  };
}

describe("the chat page's script", () => testChatPage(openStandIn));
