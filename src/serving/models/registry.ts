/**
 * @file The models a server knows: which are loaded, by which names they are called.
 *
 * Models are named by the operator; a request can name one of them or an alias, never a path. A
 * model's engine is opened by what the server was given for it, after the memory it needs was held
 * against what the machine has. Loading twice is one load; a model in use may be unloaded, its
 * requests then end with `engine.closed`. A model whose engine died is loaded again, unless it dies
 * again and again.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Engine, EngineRequest } from "../../inference/engine/api.ts";
import type { ChatFormat } from "../chat/conversation.ts";

export interface ModelDeclaration {
  readonly id: string;
  /** A run folder or a checkpoint. */
  readonly path: string;
}

/** A loaded model. */
export interface ServedModel {
  readonly id: string;
  readonly engine: Engine;
  readonly format: ChatFormat;
}

/** What the server is given to load models with. */
export interface ModelLoader {
  /** Bytes that loading the model at a path will take. */
  estimateBytes(path: string): number;
  /** Bytes the machine has left. */
  availableBytes(): number;
  open(declaration: ModelDeclaration): Promise<ServedModel>;
}

export interface ModelStatus {
  readonly id: string;
  /** failed: its engine died, and loading it again did not help. */
  readonly state: "unloaded" | "loading" | "loaded" | "failed";
  readonly estimatedBytes: number;
  /** How often its engine has died. */
  readonly deaths: number;
}

interface Entry {
  readonly declaration: ModelDeclaration;
  readonly estimatedBytes: number;
  loading: Promise<ServedModel> | undefined;
  model: ServedModel | undefined;
  /** Its engine died and it could not be loaded again. */
  hasFailed: boolean;
  /** Times of `performance.now()` at which its engine was found dead. */
  readonly deaths: number[];
}

/** By feel: what dies more often than this will do so for ever, and loading costs the others. */
const DEATHS_MAX = 3;
const DEATHS_WINDOW_MS = 600_000;

const NAME = /^[\w][\w.:-]{0,127}$/;
/** A path to nowhere is allowed in a name by some clients: `org/model`. */
const SLASHED_NAME = /^[\w][\w.:-]*(\/[\w][\w.:-]*)?$/;

export class ModelRegistry implements AsyncDisposable {
  readonly #loader: ModelLoader;
  readonly #entries = new Map<string, Entry>();
  readonly #aliases: ReadonlyMap<string, string>;

  /** An alias may end in `*`: `claude*` answers for every name that begins so. */
  constructor(
    loader: ModelLoader,
    models: readonly ModelDeclaration[],
    aliases: ReadonlyMap<string, string>,
  ) {
    this.#loader = loader;
    for (const declaration of models) {
      checkName(declaration.id);
      if (this.#entries.has(declaration.id)) {
        const { id } = declaration;
        const message = `two models are named ${id}; name one of them: --model NAME=PATH`;
        throw new OperationalError("serving.model", message);
      }
      const estimatedBytes = loader.estimateBytes(declaration.path);
      const state = { loading: undefined, model: undefined, hasFailed: false, deaths: [] };
      this.#entries.set(declaration.id, { declaration, estimatedBytes, ...state });
    }
    for (const [alias, id] of aliases) {
      checkName(alias.replace(/\*$/, "") || "*");
      if (this.#entries.has(id)) continue;
      const named = [...this.#entries.keys()].join(", ");
      const message = `alias ${alias}: there is no model ${id}; there is ${named}`;
      throw new OperationalError("serving.model", message);
    }
    this.#aliases = aliases;
  }

  get aliases(): ReadonlyMap<string, string> {
    return this.#aliases;
  }

  list(): readonly ModelStatus[] {
    return [...this.#entries.values()].map((entry) => ({
      id: entry.declaration.id,
      state: stateOf(entry),
      estimatedBytes: entry.estimatedBytes,
      deaths: entry.deaths.length,
    }));
  }

  loaded(): readonly ServedModel[] {
    return [...this.#entries.values()].flatMap(({ model }) => (model === undefined ? [] : [model]));
  }

  /** The loaded model that a request means. */
  find(name: string): ServedModel {
    const entry = this.#entry(name);
    if (entry.model !== undefined) return entry.model;
    const { id } = entry.declaration;
    if (entry.loading !== undefined) {
      throw new OperationalError("serving.loading", `the model ${id} is being loaded; come again`);
    }
    throw new OperationalError(
      "serving.model",
      `the model ${id} is not loaded; POST /v1/models/load loads it`,
      { param: "model" },
    );
  }

  /** Whether a name means a model, loaded or not; the model's own name. */
  resolve(name: string): string {
    return this.#entry(name).declaration.id;
  }

  async load(name: string): Promise<ServedModel> {
    const entry = this.#entry(name);
    if (entry.model !== undefined) return entry.model;
    return await (entry.loading ?? this.#noteLoading(entry, this.#open(entry)));
  }

  #noteLoading(entry: Entry, opening: Promise<ServedModel>): Promise<ServedModel> {
    entry.loading = opening.finally(() => {
      entry.loading = undefined;
    });
    return entry.loading;
  }

  async unload(name: string): Promise<void> {
    const entry = this.#entry(name);
    await entry.loading?.catch(() => {});
    const { model } = entry;
    entry.model = undefined;
    entry.hasFailed = false;
    if (model !== undefined) await closeModel(model);
  }

  /** Load models again whose engines have died. To be called when one refused as if closed. */
  async revive(): Promise<void> {
    await Promise.all([...this.#entries.values()].map((entry) => this.#reviveIfDead(entry)));
  }

  async #reviveIfDead(entry: Entry): Promise<void> {
    const { model } = entry;
    if (model === undefined || (await isAlive(model.engine)) || entry.model !== model) return;
    const now = performance.now();
    entry.model = undefined;
    entry.deaths.push(now);
    const isHopeless =
      entry.deaths.filter((time) => time > now - DEATHS_WINDOW_MS).length > DEATHS_MAX;
    entry.hasFailed = isHopeless;
    // What has died need not be able to close.
    const closed = closeModel(model).catch(() => {});
    if (isHopeless) return await closed;
    const loading = this.#noteLoading(
      entry,
      closed.then(() => this.#open(entry)),
    );
    await loading.catch(() => {
      entry.hasFailed = true;
    });
  }

  async #open(entry: Entry): Promise<ServedModel> {
    const { id } = entry.declaration;
    const needed = entry.estimatedBytes;
    const available = this.#loader.availableBytes();
    if (needed > available) {
      throw new OperationalError(
        "serving.memory",
        `${id} needs about ${megabytes(needed)}, and ${megabytes(available)} are free; ` +
          "unload another model first",
      );
    }
    entry.model = await this.#loader.open(entry.declaration);
    entry.hasFailed = false;
    return entry.model;
  }

  #entry(name: string): Entry {
    const direct = this.#entries.get(name) ?? this.#entries.get(this.#aliases.get(name) ?? "");
    if (direct !== undefined) return direct;
    for (const [alias, id] of this.#aliases) {
      if (alias.endsWith("*") && name.startsWith(alias.slice(0, -1))) return this.#entries.get(id)!;
    }
    const shown = SLASHED_NAME.test(name) && name.length <= 128 ? name : "of this name";
    throw new OperationalError(
      "serving.model",
      `there is no model ${shown}; GET /v1/models lists them`,
      { param: "model" },
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#entries.keys()].map((id) => this.unload(id)));
  }
}

function stateOf({ model, loading, hasFailed }: Entry): ModelStatus["state"] {
  if (model !== undefined) return "loaded";
  return loading !== undefined ? "loading" : hasFailed ? "failed" : "unloaded";
}

async function closeModel({ format, engine }: ServedModel): Promise<void> {
  await format.close();
  await engine.close();
}

/** Whether an engine takes a request: the shortest there is. */
async function isAlive(engine: Engine): Promise<boolean> {
  const request: EngineRequest = {
    prompt: Int32Array.of(engine.tokenizer.bosId),
    maxTokens: 0,
    sampling: { temperature: 0, topP: 1, topK: 0, minP: 0 },
    adjustments: null,
    seed: 0,
    stopStrings: [],
    endTokens: null,
    topLogProbabilities: null,
    promptLogProbabilities: false,
    constraint: null,
    tenant: "",
    deadlineMs: null,
    draft: "off",
  };
  try {
    for await (const _ of engine.generate(request, new AbortController().signal)) break;
    return true;
  } catch (error) {
    return !(error instanceof OperationalError && error.code === "engine.closed");
  }
}

function checkName(name: string): void {
  if (name === "*" || NAME.test(name)) return;
  throw new OperationalError(
    "serving.model",
    `a model's name (${JSON.stringify(name)}) must be 1 to 128 letters, digits, '.', ':', '-', '_'`,
  );
}

function megabytes(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)} MiB`;
}
