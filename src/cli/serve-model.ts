/** @file A server from a command line's words, and how it ends: drained at first, then at once. */
import { randomBytes } from "node:crypto";
import { basename, resolve } from "node:path";
import { OperationalError } from "../base/errors.ts";
import type { Engine } from "../inference/engine/api.ts";
import { checkAdmitted, isLoopback } from "../serving/http/guard.ts";
import { type ApiKey, apiKey, readKeyFile } from "../serving/http/keys.ts";
import type { PrefixFolder } from "../serving/models/engine-origin.ts";
import type { ExpertSettings } from "../serving/models/expert-engine.ts";
import { type LoaderOptions, modelLoader } from "../serving/models/loader.ts";
import { type EngineRole, type EngineSettings, openEngine } from "../serving/models/open-engine.ts";
import { type ModelDeclaration, ModelRegistry } from "../serving/models/registry.ts";
import { ApiServer, type LogEntry } from "../serving/server.ts";
import { isRunFolder, listCheckpoints } from "../training/run/run-folder.ts";
import { cacheFolder } from "./cache-folder.ts";
import { tryingCurl } from "./curl-line.ts";
import type { Context } from "./verb.ts";

const BODY_BYTES_MAX = 32 * 2 ** 20;
const REBALANCE_TOKENS = 65_536;

export interface ServeOptions {
  readonly models: readonly string[];
  /** What weights are kept in (weight-format.ts); as each model stores them if left out. */
  readonly weights?: string | undefined;
  readonly aliases: readonly string[];
  readonly host: string;
  readonly port: number;
  /** Another port will do, if that one is taken. */
  readonly isPortFree?: boolean;
  readonly keysFile: string | undefined;
  readonly requestsPerMinute: number;
  readonly requestsMax: number;
  readonly allowedHosts: readonly string[];
  readonly allowedOrigins: readonly string[];
  readonly role: EngineRole;
  /** Ranks that the routed experts are divided over; 1: they are not. */
  readonly expertRanks: number;
  /** Of expert ranks alone; none if undefined. */
  readonly redundantExperts: number | undefined;
  /**
   * Of expert ranks alone: tokens after which experts are placed anew; 0: never. REBALANCE_TOKENS
   * if undefined.
   */
  readonly rebalanceTokens: number | undefined;
  /** The user's cache folder if undefined. */
  readonly prefixCacheFolder: string | undefined;
  /** 0: none. */
  readonly prefixCacheBytesMax: number;
  readonly drainSeconds: number;
  /** Opens a model where engines of this process alone do not: over ranks. */
  readonly openModel?: (path: string, prefixFolder: PrefixFolder | null) => Promise<Engine>;
}

/** What `hadal serve` does unless told otherwise. */
export const LOCAL_SERVING = {
  aliases: [],
  host: "127.0.0.1",
  port: 8080,
  keysFile: undefined,
  requestsPerMinute: 0,
  requestsMax: 256,
  allowedHosts: [],
  allowedOrigins: [],
  role: "both",
  expertRanks: 1,
  redundantExperts: undefined,
  rebalanceTokens: undefined,
  prefixCacheFolder: undefined,
  prefixCacheBytesMax: 4_294_967_296,
  drainSeconds: 30,
} as const;

/** What listens, and a command that tries the first model. */
export interface Serving {
  readonly address: string;
  readonly names: readonly string[];
  /** Lines of a shell. */
  readonly curl: readonly string[];
}

/** Serve until a signal comes; `onReady` is told when it begins. */
export async function serveModels(
  options: ServeOptions,
  { output, interruption, env }: Context,
  onReady: (serving: Serving) => void,
): Promise<void> {
  const keys: readonly ApiKey[] =
    options.keysFile === undefined ? [] : readKeyFile(options.keysFile);
  if (keys.length === 0 && !isLoopback(options.host)) {
    throw new OperationalError(
      "serving.keys",
      `--host ${options.host} lets others reach the models, and there is no key; give ` +
        "--keys FILE (one NAME KEY a line), or listen on 127.0.0.1",
    );
  }
  const admitted = checkAdmitted(options);
  const declarations = options.models.map(modelOf);
  const aliases = new Map(options.aliases.map(aliasOf));
  const settings = engineSettings(options, env);
  const { openModel } = options;
  const loader =
    openModel === undefined
      ? modelLoader(engineOpener(env, settings), keptBy(settings))
      : modelLoader((path) => openModel(path, settings.prefixFolder), keptByRank(settings));
  await using models = new ModelRegistry(loader, declarations, aliases);
  for (const { id } of declarations) await models.load(id);
  const start = (port: number): Promise<ApiServer> =>
    ApiServer.start({
      ...options,
      ...admitted,
      port,
      models,
      keys,
      bodyBytesMax: BODY_BYTES_MAX,
      log: (entry) => output.line(logLine(entry)),
    });
  await using server = await start(options.port).catch((error: unknown) => {
    if (options.isPortFree !== true) throw error;
    return start(0);
  });
  // Prompts can be read from there: who serves them is told.
  if (settings.prefixFolder !== null) {
    output.line(`keeping prefixes of prompts in ${settings.prefixFolder.folder}`);
  }
  const host = options.host.includes(":") ? `[${options.host}]` : options.host;
  const address = `http://${host}:${server.port}`;
  const names = declarations.map(({ id }) => id);
  const [first] = declarations;
  const curl = first === undefined ? [] : tryingCurl(address, first.id, mayHaveSeenChats(first));
  onReady({ address, names, curl });
  await endOf(interruption.orderly());
  if (server.numOpen > 0) output.line(`ending: requests still running: ${server.numOpen}`);
  await drained(server, options.drainSeconds);
}

/** What runs the models: the one place that chooses an engine. */
function engineOpener(
  env: Context["env"],
  settings?: EngineSettings,
): (path: string) => Promise<Engine> {
  return (path) => openEngine(path, env, settings);
}

/** Of a model's weights in this process. */
function keptBy({ role, weights, experts }: EngineSettings): LoaderOptions {
  return { copies: role === "split" ? 2 : 1, weights, numRedundant: experts?.numRedundant };
}

/** Where ranks are processes, and this is one of them. */
function keptByRank({ weights, experts }: EngineSettings): LoaderOptions {
  const { numRedundant, numRanks: numProcesses } = experts ?? {};
  return { weights, numRedundant, numProcesses };
}

/** What the options say of engines; refuses what does not go together. */
export function engineSettings(options: ServeOptions, env: Context["env"]): EngineSettings {
  const { role, prefixCacheFolder, prefixCacheBytesMax: bytesMax, weights } = options;
  const folder = prefixCacheFolder ?? cacheFolder("prefixes", env);
  const prefixFolder = bytesMax === 0 ? null : { folder: resolve(folder), bytesMax };
  return { role, prefixFolder, weights, experts: expertSettings(options) };
}

function expertSettings({
  role,
  expertRanks: numRanks,
  redundantExperts,
  rebalanceTokens,
}: ServeOptions): ExpertSettings | undefined {
  const refuse = (message: string): never => {
    throw new OperationalError("usage.expertRanks", message);
  };
  if (numRanks === 1) {
    if (redundantExperts !== undefined) {
      const given = `--redundant-experts ${redundantExperts}`;
      return refuse(`${given} is of copies on other ranks; give --expert-ranks, 2 or more`);
    }
    if (rebalanceTokens !== undefined) {
      const given = `--rebalance-tokens ${rebalanceTokens}`;
      return refuse(`${given} is of experts on ranks; give --expert-ranks, 2 or more`);
    }
    return undefined;
  }
  if (role === "split") {
    return refuse(`--expert-ranks ${numRanks} goes with one engine; leave out --role split`);
  }
  const [numRedundant, rebalance] = [redundantExperts ?? 0, rebalanceTokens ?? REBALANCE_TOKENS];
  return { numRanks, numRedundant, rebalanceTokens: rebalance };
}

/** A server of one model for this process alone: a free port, a key that nobody else knows. */
export async function openPrivateServer(
  { path, weights }: { readonly path: string; readonly weights: string | undefined },
  { env }: Pick<Context, "env">,
): Promise<AsyncDisposable & { readonly url: string; readonly key: string }> {
  await using opened = new AsyncDisposableStack();
  const declaration = modelOf(path);
  const settings = { prefixFolder: null, role: "both", weights } as const;
  const loader = modelLoader(engineOpener(env, settings), { weights });
  const models = opened.use(new ModelRegistry(loader, [declaration], new Map()));
  await models.load(declaration.id);
  const key = randomBytes(24).toString("base64url");
  const server = opened.use(
    await ApiServer.start({
      host: "127.0.0.1",
      port: 0,
      allowedHosts: [],
      allowedOrigins: [],
      requestsPerMinute: 0,
      requestsMax: 8,
      bodyBytesMax: BODY_BYTES_MAX,
      models,
      keys: [apiKey("chat", key)],
      log: () => {},
    }),
  );
  const ending = opened.move();
  const url = `http://127.0.0.1:${server.port}`;
  return { url, key, [Symbol.asyncDispose]: () => ending.disposeAsync() };
}

function endOf(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener("abort", () => resolve(), { once: true });
  });
}

async function drained(server: ApiServer, seconds: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, seconds * 1000);
  });
  await Promise.race([server.drain(), late]);
  clearTimeout(timer);
}

/** `hadal train` reads plain text: its runs have seen no chats. Of others nothing is known. */
function mayHaveSeenChats({ path }: ModelDeclaration): boolean {
  return !isRunFolder(path) && !isOfRun(path);
}

/** `NAME=PATH`, or a path, whose folder then names the model. */
export function modelOf(words: string): ModelDeclaration {
  const [, name, path] = /^([^=/\\]+)=(.+)$/.exec(words) ?? [];
  if (name !== undefined && path !== undefined) return { id: name, path };
  // A checkpoint of a run is named after the run.
  return { id: basename(isOfRun(words) ? runOf(words) : resolve(words)), path: words };
}

/** Whether a path is a checkpoint within a run's folder. */
function isOfRun(path: string): boolean {
  return /^step-\d+$/.test(basename(resolve(path))) && listCheckpoints(runOf(path)).length > 0;
}

function runOf(checkpoint: string): string {
  return resolve(checkpoint, "../..");
}

function aliasOf(words: string): readonly [string, string] {
  const [, alias, name] = /^([^=]+)=([^=]+)$/.exec(words) ?? [];
  if (alias !== undefined && name !== undefined) return [alias, name];
  throw new OperationalError("usage.alias", `--alias ${words} must be ALIAS=NAME`);
}

/** One request on one line; texts of others are quoted, so none can begin a line of its own. */
function logLine({ id, method, route, status, caller, milliseconds, error }: LogEntry): string {
  const words = [id.slice(0, 8), method, route, status, caller, `${milliseconds} ms`];
  return error === undefined ? words.join(" ") : `${words.join(" ")} ${JSON.stringify(error)}`;
}
