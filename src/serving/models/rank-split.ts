/**
 * @file Prefill and decode as two ranks, each an engine with weights, cache and threads of its own:
 * split-engine.ts over processes, and over machines.
 *
 * Rank 0 serves and decodes; rank 1 reads prompts and hands their latent blocks over. The tokens
 * are those of one engine. It is fail-stop, as all that runs over ranks: if one is lost the other
 * ends.
 */
import { MessageChannel } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import { type Failure, failureOf } from "../../base/failure.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Engine } from "../../inference/engine/api.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { type EngineOrigin, openEngineThread } from "./engine-origin.ts";
import { joinPort, RankLink } from "./rank-port.ts";

type Origin = Omit<EngineOrigin, "port">;

/** What the ranks tell each other once their engines are open, or could not be. */
type Opened = { readonly modelHash: string } | { readonly failure: Failure };

const DECODE_RANK = 0;
const PREFILL_RANK = 1;

export interface RankPair {
  readonly communicator: Communicator;
  readonly memory: CpuMemory;
}

/** The engine of rank 0, and the end of what it shares with rank 1: after the engine is closed. */
export async function openDecodeRank(
  origin: Origin,
  { communicator, memory }: RankPair,
): Promise<{ readonly engine: Engine; readonly ended: Promise<void> }> {
  return await openRank(origin, "decode", new RankLink(communicator, memory, PREFILL_RANK));
}

/** Reads prompts for rank 0 until that closes its engine. */
export async function servePrefillRank(
  origin: Origin,
  { communicator, memory }: RankPair,
): Promise<void> {
  const link = new RankLink(communicator, memory, DECODE_RANK);
  const { engine, ended } = await openRank({ ...origin, prefixFolder: null }, "prefill", link);
  try {
    await ended;
  } finally {
    await engine.close();
  }
}

async function openRank(origin: Origin, role: "prefill" | "decode", link: RankLink) {
  const { port1, port2 } = new MessageChannel();
  const opening = openEngineThread({ ...origin, port: { role, end: port2 } });
  const own = await opening.then(
    ({ description }): Opened => ({ modelHash: description.modelHash }),
    (failure: unknown): Opened => ({ failure: failureOf(failure) }),
  );
  const sent = link.send(own);
  const other = (await link.receive()) as Opened;
  await sent;
  const engine = await opening;
  const problem = problemBetween(own, other);
  if (problem !== null) {
    await engine.close();
    throw problem;
  }
  return { engine, ended: joinPort(port1, link) };
}

function problemBetween(own: Opened, other: Opened): OperationalError | null {
  if ("failure" in other) {
    const { message } = other.failure;
    return new OperationalError("serving.model", `the other rank has no engine: ${message}`);
  }
  if ("failure" in own || own.modelHash === other.modelHash) return null;
  const message = "the two ranks have different models; give both the same checkpoint";
  return new OperationalError("serving.model", message);
}
