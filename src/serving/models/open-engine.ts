/**
 * @file Opening a checkpoint to serve it: its model on this machine's device, and an engine over
 * it.
 *
 * Latents get 256 MiB, and at least what one sequence of the model's whole context takes: several
 * requests at once, and the prefixes of those before.
 */
import { createHash } from "node:crypto";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import type { Device } from "../../device/device.ts";
import { tickingDevice } from "../../device/ticking-device.ts";
import { Decoder } from "../../inference/decoder.ts";
import type { Engine, PrefixReader } from "../../inference/engine/api.ts";
import { LocalEngine } from "../../inference/engine/local-engine.ts";
import type { ExpertLeader } from "../../inference/expert-ranks/expert-leader.ts";
import { latentBytesPerToken } from "../../inference/latent-blocks.ts";
import { probeLatents } from "../../inference/latent-probe.ts";
import { DiskTier } from "../../inference/prefix-cache/disk/disk-tier.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import type { Model } from "../../model/model.ts";
import {
  inferenceOptions,
  loadCheckpoint,
  readModelConfig,
} from "../../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";
import { type Environment, openEngineThread, type PrefixFolder } from "./engine-origin.ts";
import { type ExpertSettings, openExpertEngine } from "./expert-engine.ts";
import { hashOf } from "./model-hash.ts";
import { openSplitEngine } from "./split-engine.ts";

const LATENT_BYTES = 256 * 2 ** 20;
/** How long opening waits for the list of a folder's blocks; by feel. */
const SCAN_MS_MAX = 10_000;

/** both: one engine reads prompts and decodes; split: one of them each (split-engine.ts). */
export type EngineRole = "both" | "split";

export interface EngineSettings {
  /** Where prefixes are kept beyond the engine's life; null: nowhere. */
  readonly prefixFolder: PrefixFolder | null;
  readonly role: EngineRole;
  /** The notation of what weights are kept in; as they are stored if left out. */
  readonly weights?: string | undefined;
  /** How routed experts are divided over ranks; they are not if left out. */
  readonly experts?: ExpertSettings | undefined;
}

const PLAIN: EngineSettings = { prefixFolder: null, role: "both" };

/** The engine of a checkpoint, in a thread of its own. */
export async function openEngine(
  path: string,
  env: Environment,
  { prefixFolder, role, weights, experts }: EngineSettings = PLAIN,
): Promise<Engine> {
  // What a run's last checkpoint is may change while two engines are opened.
  const folder = resolveCheckpoint(path);
  const origin = { path: folder, env, prefixFolder, weights, port: null };
  if (experts !== undefined) return await openExpertEngine(origin, experts);
  return role === "both" ? await openEngineThread(origin) : await openSplitEngine(origin);
}

/** What shares the experts of an engine with other ranks. */
export interface ExpertLead {
  readonly share: ExpertShare;
  /** The same device, showing with every launch that this rank lives. */
  readonly device: Device;
  /** Collective: a hash of what all ranks hold, from that of this one. */
  readonly hashOfAll: (own: string) => string;
  /** Of the model that it shares, once all have read their weights. */
  readonly begin: (model: Model) => ExpertLeader;
}

/**
 * The engine of a checkpoint in this thread; `reader` reads prompts in its place, `leadExperts`
 * shares experts with other ranks, `onLaunch` is called with every launch.
 */
export async function openEngineHere(
  path: string,
  env: Environment,
  {
    prefixFolder = null,
    weights,
    reader,
    leadExperts,
    onLaunch = (): void => {},
  }: Partial<Pick<EngineSettings, "prefixFolder" | "weights">> & {
    readonly reader?: PrefixReader;
    readonly leadExperts?: (device: Device, config: ModelConfig) => Promise<ExpertLead>;
    readonly onLaunch?: () => void;
  } = {},
): Promise<LocalEngine> {
  const device = await openCpuDevice(cpuOptionsFromEnvironment(env));
  try {
    const checkpoint = resolveCheckpoint(path);
    const telling = tickingDevice(device, onLaunch);
    const lead = await leadExperts?.(telling, readModelConfig(checkpoint));
    const how = { ...inferenceOptions(checkpoint, weights), experts: lead?.share };
    const runsOn = lead?.device ?? telling;
    const { model, tokenizer } = loadCheckpoint(runsOn, checkpoint, how);
    const modelHash = lead === undefined ? hashOf(model) : lead.hashOfAll(hashOf(model));
    const leader = lead?.begin(model);
    const decoder = new Decoder(runsOn, model, cacheTokensOf(model), leader);
    const disk = await openDiskTier(prefixFolder, decoder, modelHash);
    const options = {
      modelHash,
      ...(disk === null ? {} : { disk }),
      ...(reader === undefined ? {} : { reader }),
    };
    return new LocalEngine(decoder, tokenizer, options, async () => {
      leader?.end();
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
