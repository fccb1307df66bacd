/**
 * @file Opening a checkpoint to serve it: its model on this machine's device, and an engine over
 * it.
 *
 * Latents get 256 MiB, and at least what one sequence of the model's whole context takes: several
 * requests at once, and the prefixes of those before. The model's hash is over the numbers
 * themselves, so that what was cached for one model is never taken for another.
 */
import { createHash } from "node:crypto";
import { Worker } from "node:worker_threads";
import { siblingModule } from "../../base/modules.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { Decoder } from "../../inference/decoder.ts";
import type { Engine } from "../../inference/engine/api.ts";
import { LocalEngine } from "../../inference/engine/local-engine.ts";
import { openRemoteEngine } from "../../inference/engine/thread/remote-engine.ts";
import { latentBytesPerToken } from "../../inference/latent-blocks.ts";
import { probeLatents } from "../../inference/latent-probe.ts";
import { DiskTier } from "../../inference/prefix-cache/disk/disk-tier.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { Model } from "../../model/model.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { viewSpan } from "../../tensor/view.ts";
import { loadCheckpoint, readTokenizer } from "../../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";

type Environment = Readonly<Record<string, string | undefined>>;

const LATENT_BYTES = 256 * 2 ** 20;
/** How long opening waits for the list of a folder's blocks; by feel. */
const SCAN_MS_MAX = 10_000;

/** A folder for cached prefixes, which engines of all models and processes may share. */
export interface PrefixFolder {
  readonly folder: string;
  /** For everything in the folder. */
  readonly bytesMax: number;
}

export interface EngineSettings {
  /** Where prefixes are kept beyond the engine's life; null: nowhere. */
  readonly prefixFolder: PrefixFolder | null;
}

/** What the thread of an engine is given. */
export interface EngineOrigin {
  readonly path: string;
  readonly env: Environment;
  readonly settings: EngineSettings;
}

const IN_MEMORY: EngineSettings = { prefixFolder: null };

/** The engine of a checkpoint, in a thread of its own. */
export async function openEngine(
  path: string,
  env: Environment,
  settings: EngineSettings = IN_MEMORY,
): Promise<Engine> {
  const tokenizer = readTokenizer(resolveCheckpoint(path));
  const workerData: EngineOrigin = { path, env, settings };
  const worker = new Worker(siblingModule("./engine-thread", import.meta.url), { workerData });
  try {
    return await openRemoteEngine(worker, tokenizer);
  } catch (failure) {
    await worker.terminate();
    throw failure;
  }
}

/** The engine of a checkpoint in this thread. */
export async function openEngineHere(
  path: string,
  env: Environment,
  settings: EngineSettings = IN_MEMORY,
): Promise<Engine> {
  const device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  try {
    const { model, tokenizer } = loadCheckpoint(device, resolveCheckpoint(path), {
      weights: "bf16",
    });
    const decoder = new Decoder(device, model, cacheTokensOf(model));
    const modelHash = hashOf(model);
    const disk = await openDiskTier(settings.prefixFolder, decoder, modelHash);
    const options = disk === null ? { modelHash } : { modelHash, disk };
    return new LocalEngine(decoder, tokenizer, options, async () => {
      await disk?.close();
      await device[Symbol.asyncDispose]();
    });
  } catch (failure) {
    await device[Symbol.asyncDispose]();
    throw failure;
  }
}

type LatentKind = Parameters<typeof latentBytesPerToken>[0];

/** Positions that an engine of such a model can hold. */
function cacheTokensOf(model: LatentKind): number {
  const roomFor = Math.floor(LATENT_BYTES / latentBytesPerToken(model));
  return Math.max(model.config.maxPositionEmbeddings, roomFor);
}

/** Bytes that the latents of an engine take. */
export function latentCacheBytes(config: ModelConfig): number {
  const kind: LatentKind = { config, computeType: "bf16", floatType: "f32" };
  return cacheTokensOf(kind) * latentBytesPerToken(kind);
}

async function openDiskTier(
  prefixFolder: PrefixFolder | null,
  decoder: Decoder,
  modelHash: string,
): Promise<DiskTier | null> {
  if (prefixFolder === null) return null;
  const arithmetic = createHash("sha256").update(probeLatents(decoder)).digest("hex");
  const modelIdentity = `${modelHash} ${arithmetic}`;
  const payloadBytes = decoder.blocks.blockBytes;
  const disk = new DiskTier({ ...prefixFolder, modelIdentity, payloadBytes });
  // The first request after a restart shall find what was kept.
  await disk.ready(SCAN_MS_MAX);
  return disk;
}

function hashOf({ config, parameters, gateBiases }: Model): string {
  const hash = createHash("sha256").update(JSON.stringify(config));
  const add = (tensor: Tensor): void => {
    const { buffer, byteOffset, byteLength } = viewSpan(tensor);
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  };
  for (const { kept } of parameters.list) add(kept);
  for (const { bias } of gateBiases) add(bias);
  return hash.digest("hex");
}
