/**
 * @file Prefill and decode as two engines in two threads, each with weights and a latent cache of
 * its own: a prompt that is read never shares a step with what is generated.
 *
 *     request ─▶ decode engine ─▶ which blocks of the prompt are missing? ─▶ prefill engine
 *                     ▲                                                          │ reads them
 *                     └──────────── latent blocks, block after block ◀───────────┘
 *
 * The decode engine reads the ragged end of a prompt, and all of it when the other cannot: when it
 * has died, or had to let blocks go. Tokens are those of one engine. The threads of the device are
 * divided between the two. Attention and experts of two micro-batches do not alternate here: that
 * hides an exchange of tokens between ranks (expert-engine.ts), and here experts are local.
 */
import { MessageChannel } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type {
  Engine,
  EngineDescription,
  EngineEvent,
  EngineMetric,
  EngineRequest,
} from "../../inference/engine/api.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { type EngineOrigin, numThreadsIn, openEngineThread, withThreads } from "./engine-origin.ts";

/** The two engines of a checkpoint. */
export async function openSplitEngine(origin: Omit<EngineOrigin, "port">): Promise<Engine> {
  const { path, env, prefixFolder, weights } = origin;
  const numThreads = numThreadsIn(env);
  const ofPrefill = ceilDiv(numThreads, 2);
  const { port1, port2 } = new MessageChannel();
  const openings = [
    openEngineThread({
      ...{ path, env: withThreads(env, ofPrefill), prefixFolder: null, weights },
      port: { role: "prefill", end: port1 },
    }),
    openEngineThread({
      ...{ path, env: withThreads(env, numThreads - ofPrefill), prefixFolder, weights },
      port: { role: "decode", end: port2 },
    }),
  ];
  try {
    const [prefill, decode] = (await Promise.all(openings)) as [Engine, Engine];
    refuseUnlessAlike(prefill, decode);
    return new SplitEngine(prefill, decode);
  } catch (failure) {
    const opened = await Promise.allSettled(openings);
    for (const each of opened) if (each.status === "fulfilled") await each.value.close();
    throw failure;
  }
}

function refuseUnlessAlike(prefill: Engine, decode: Engine): void {
  if (prefill.description.modelHash === decode.description.modelHash) return;
  throw new OperationalError(
    "serving.model",
    "the checkpoint changed while it was loaded twice, for prefill and decode; start again",
  );
}

class SplitEngine implements Engine {
  readonly #prefill: Engine;
  readonly #decode: Engine;

  constructor(prefill: Engine, decode: Engine) {
    this.#prefill = prefill;
    this.#decode = decode;
  }

  get description(): EngineDescription {
    return this.#decode.description;
  }

  get tokenizer(): Tokenizer {
    return this.#decode.tokenizer;
  }

  generate(request: EngineRequest, signal: AbortSignal): AsyncIterable<EngineEvent> {
    return this.#decode.generate(request, signal);
  }

  embed(tokens: Int32Array, tenant: string, signal: AbortSignal): Promise<Float32Array> {
    return this.#decode.embed(tokens, tenant, signal);
  }

  /** Those of both, told apart by a label; none of one that died. */
  async metrics(): Promise<readonly EngineMetric[]> {
    const roles = { prefill: this.#prefill, decode: this.#decode };
    const ofRoles = Object.entries(roles).map(async ([role, engine]) => {
      const counted = await engine.metrics().catch(() => null);
      const own = (counted ?? []).map(
        (metric): EngineMetric => ({ ...metric, labels: { role, ...metric.labels } }),
      );
      const help = "1 while the engine of a role runs, 0 when it has died.";
      const value = counted === null ? 0 : 1;
      return [
        { kind: "gauge" as const, name: "engine_role_up", help, labels: { role }, value },
        ...own,
      ];
    });
    return (await Promise.all(ofRoles)).flat();
  }

  async close(): Promise<void> {
    await this.#decode.close();
    await this.#prefill.close();
  }
}
