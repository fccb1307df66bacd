/**
 * @file A thread that renders a chat template (template-threads.ts): one template, many
 * conversations.
 *
 * Jinja as Hugging Face uses it, by their own package; it reaches neither files nor constructors of
 * JavaScript. What it does not limit (time, memory, the output's length) is limited around it.
 */
import { parentPort, workerData } from "node:worker_threads";
import { Template } from "@huggingface/jinja";
import { defined } from "../../base/errors.ts";
import type { Rendered, Variables } from "./template-threads.ts";

const { template, charactersMax } = workerData as { template: string; charactersMax: number };
const port = defined(parentPort, "the thread that asks");
let compiled: Template | undefined;

port.on("message", (variables: Variables) => port.postMessage(render(variables)));

function render(variables: Variables): Rendered {
  try {
    compiled ??= new Template(template);
    const text = compiled.render({ ...variables });
    return text.length > charactersMax
      ? { problem: `makes more than ${charactersMax} characters of them` }
      : { text };
  } catch (error) {
    // `raise_exception` in a template speaks to the client: roles must alternate, and such.
    const message = error instanceof Error ? error.message : String(error);
    return { problem: `says: ${message.slice(0, 200)}` };
  }
}
