/**
 * @file A rank that is led: it does what the leader says until that says "end".
 *
 * Settings come from the leader, and so do batches; a rank needs no files. What a step finds out
 * about losses and gradients that are not finite all ranks find out alike: the leader ends the run
 * and says why.
 */
import { assert } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { RunPlan } from "../budget.ts";
import { checkSettings, type TrainingSettings } from "../settings.ts";
import type { TrainerState } from "../trainer.ts";
import { receivedBatches } from "./batch-feed.ts";
import { LEADER, type Order, RankChannel } from "./rank-channel.ts";
import { isNonFinite, RankTrainer } from "./rank-trainer.ts";
import type { TrainingLayout } from "./training-layout.ts";

/** What the leader says first. */
export interface Beginning {
  readonly settings: TrainingSettings;
  readonly layout: TrainingLayout;
}

/** What goes with "restore". */
export interface Restored {
  readonly state: TrainerState;
}

/** What goes with "step". */
export interface NextStep {
  readonly plan: RunPlan | null;
}

/** Until the leader says "end". */
export async function follow(device: Device, world: Communicator): Promise<void> {
  const channel = new RankChannel(world, device.memory);
  const first = await channel.nextOrder("processes");
  if (first.command === "end") return;
  assert(first.command === "begin", `${first.command} before the beginning`);
  const { settings, layout } = channel.receiveData(LEADER) as Beginning;
  const rowTokens = settings.data.sequenceLength + 1 + settings.model.numMtpModules;
  await using rank = await RankTrainer.start({
    device,
    world,
    settings: checkSettings(settings),
    layout,
    loader: receivedBatches(channel, rowTokens),
    suspect: () => null,
  });
  await channel.reportReady();
  channel.sendData(rank.held.pieces, LEADER);
  for (;;) {
    const order = await channel.nextOrder("ranks");
    if (order.command === "end") return;
    obey(rank, channel, order);
  }
}

function obey(rank: RankTrainer, channel: RankChannel, { command, argument }: Order): void {
  const { trainer, held } = rank;
  switch (command) {
    case "step": {
      const { plan } = channel.receiveData(LEADER) as NextStep;
      trainer.plan = plan ?? undefined;
      takeStep(rank);
      return;
    }
    case "fetch":
      channel.send(held.tensor(argument), LEADER);
      return;
    case "put":
      channel.receive(held.tensor(argument), LEADER);
      return;
    case "held":
      held.refresh();
      channel.sendData(held.pieces, LEADER);
      return;
    case "restore":
      trainer.restore((channel.receiveData(LEADER) as Restored).state);
      return;
    case "timed":
      channel.sendData(rank.timed, LEADER);
      return;
    default:
      assert(false, `${command} while training`);
  }
}

function takeStep({ trainer }: RankTrainer): void {
  try {
    trainer.step();
  } catch (error) {
    if (!isNonFinite(error)) throw error;
  }
}
