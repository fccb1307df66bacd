/**
 * @file Runs one rank of any schedule over the communicator of its pipeline.
 *
 * Actions run in the order of the schedule; receives are posted a few actions ahead; sends are not
 * waited for. A boundary tensor is taken from a pool when something is to be put into it and given
 * back when nobody reads it any more: an input after the last backward of its micro-batch, what was
 * sent when it has arrived. Between stages of the same rank the output is the next stage's input.
 */
import { assert, defined } from "../../../base/errors.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import {
  type Communicator,
  type Operation,
  USER_CHANNELS,
} from "../../communicator/communicator.ts";
import { type Action, type Chunk, type ChunkAction, partsOf } from "../action.ts";
import {
  type Direction,
  directionOf,
  type Message,
  messageInto,
  messageOutOf,
  streamOf,
} from "../layout.ts";
import type { Schedule } from "../schedules/schedule.ts";
import type { TimedAction } from "../simulate.ts";
import type { BoundaryPool } from "./boundary-pool.ts";
import { runAlone, runInterleaved, type WeightWork } from "./interleave.ts";
import type { Stage, Work } from "./stage.ts";

/** Actions whose messages are received before their turn. */
const LOOKAHEAD = 2;

export interface PipelineRun {
  readonly schedule: Schedule;
  /** Its ranks are those of the schedule. */
  readonly communicator: Communicator;
  /** This rank's copy of a stage; in a bidirectional pipeline each direction has its own. */
  readonly stageFor: (stage: number, direction: Direction) => Stage;
  /** Kept from step to step, so that the second one asks for no memory. */
  readonly boundaries: BoundaryPool;
  /** Milliseconds on a clock that all ranks share. */
  readonly now: () => number;
}

/** What this rank did, and when; waiting for messages is not part of an action. */
export function runSchedule(run: PipelineRun): TimedAction[] {
  const { schedule, communicator } = run;
  assert(
    communicator.size === schedule.layout.numRanks,
    `a schedule of ${schedule.layout.numRanks} ranks over ${communicator.size}`,
  );
  assert(schedule.layout.numStages * 4 <= USER_CHANNELS, "streams must fit the channels");
  return new RankRun(run).run();
}

class RankRun {
  readonly #run: PipelineRun;
  readonly #actions: readonly Action[];
  readonly #pool: BoundaryPool;
  /** Messages under way to this rank, and results handed over on it, by what they are. */
  readonly #arriving = new Map<
    string,
    { readonly tensor: Tensor; readonly operation: Operation }
  >();
  readonly #ready = new Map<string, Tensor>();
  /** Inputs of chunks whose last backward is still to come. */
  readonly #inputs = new Map<string, Tensor | null>();
  #sending: { readonly tensor: Tensor; readonly operation: Operation }[] = [];

  constructor(run: PipelineRun) {
    this.#run = run;
    this.#actions = defined(run.schedule.ranks[run.communicator.rank], "this rank's actions");
    this.#pool = run.boundaries;
  }

  run(): TimedAction[] {
    const { communicator, now } = this.#run;
    let numPosted = 0;
    const timed = this.#actions.map((action, index) => {
      for (; numPosted < this.#actions.length && numPosted <= index + LOOKAHEAD; numPosted++) {
        for (const part of partsOf(this.#actions[numPosted]!)) this.#postReceive(part);
      }
      for (const part of partsOf(action)) this.#await(part);
      const start = now();
      this.#perform(action);
      const end = now();
      communicator.tick();
      this.#reap();
      return { action, start, end };
    });
    for (const { operation } of this.#sending) operation.wait();
    this.#reap();
    const left = this.#arriving.size + this.#ready.size + this.#inputs.size;
    assert(left === 0 && this.#pool.numTaken === 0, `${left} tensors were never used`);
    return timed;
  }

  #postReceive(part: ChunkAction): void {
    const { communicator } = this.#run;
    const message = messageInto(this.#run.schedule.layout, part);
    if (message === null) return;
    const tensor = this.#pool.take();
    const operation = communicator.receive(tensor, message.from, this.#channel(message));
    this.#arriving.set(keyOf(message.content, message.boundary, part), { tensor, operation });
  }

  /** Waits for the message a part needs, if it needs one. */
  #await(part: ChunkAction): void {
    const message = messageInto(this.#run.schedule.layout, part);
    if (message === null) return;
    const key = keyOf(message.content, message.boundary, part);
    const { tensor, operation } = defined(this.#arriving.get(key), `message ${key}`);
    operation.wait();
    this.#arriving.delete(key);
    this.#ready.set(key, tensor);
  }

  #perform(action: Action): void {
    if (action.kind === "F&B") {
      const forward = this.#forward({ kind: "F", ...action.forward });
      const backward = this.#backwardInput({ kind: "B", ...action.backward });
      runInterleaved(backward.work(), forward.work(), this.#weightsOf(action.backward));
      backward.finish();
      forward.finish();
    } else if (action.kind === "W") this.#backwardWeight(action);
    else {
      const { work, finish } =
        action.kind === "F" ? this.#forward(action) : this.#backwardInput(action);
      runAlone(work(), action.kind === "B" ? this.#weightsOf(action) : null);
      finish();
    }
  }

  #forward(part: ChunkAction): { readonly work: () => Work; readonly finish: () => void } {
    const { stage, microBatch } = part;
    const input = stage === 0 ? null : this.#takeReady("activation", stage - 1, part);
    const output = this.#isLast(stage) ? null : this.#pool.take();
    this.#inputs.set(chunkKey(part), input);
    return {
      work: () => this.#stage(part).forward({ microBatch, input, output }),
      finish: () => this.#deliver(part, "activation", output),
    };
  }

  #backwardInput(part: ChunkAction): { readonly work: () => Work; readonly finish: () => void } {
    const { stage, microBatch } = part;
    const input = this.#inputs.get(chunkKey(part));
    assert(input !== undefined, `stage ${stage} has not forwarded micro-batch ${microBatch}`);
    const dOutput = this.#isLast(stage) ? null : this.#takeReady("gradient", stage, part);
    const dInput = stage === 0 ? null : this.#pool.take();
    const isFull = part.kind === "B";
    return {
      work: () => this.#stage(part).backwardInput({ microBatch, input, dOutput, dInput, isFull }),
      finish: () => {
        if (dOutput !== null) this.#pool.giveBack(dOutput);
        this.#deliver(part, "gradient", dInput);
      },
    };
  }

  #weightsOf(chunk: Chunk): WeightWork {
    return {
      fill: () => this.#stage(chunk).fillWait(chunk.microBatch),
      finish: () => this.#backwardWeight(chunk),
    };
  }

  #backwardWeight(chunk: Chunk): void {
    this.#stage(chunk).backwardWeight(chunk.microBatch);
    const input = this.#inputs.get(chunkKey(chunk));
    assert(input !== undefined, `the weights of ${chunkKey(chunk)} are done already`);
    this.#inputs.delete(chunkKey(chunk));
    if (input !== null) this.#pool.giveBack(input);
  }

  /** To another rank, or to the next stage of this one. */
  #deliver(part: ChunkAction, content: Message["content"], tensor: Tensor | null): void {
    if (tensor === null) return;
    const { communicator, schedule } = this.#run;
    const message = messageOutOf(schedule.layout, part);
    if (message === null) {
      const boundary = content === "activation" ? part.stage : part.stage - 1;
      this.#ready.set(keyOf(content, boundary, part), tensor);
      return;
    }
    const operation = communicator.send(tensor, message.to, this.#channel(message));
    this.#sending.push({ tensor, operation });
  }

  #takeReady(content: Message["content"], boundary: number, part: Chunk): Tensor {
    const key = keyOf(content, boundary, part);
    const tensor = defined(this.#ready.get(key), key);
    this.#ready.delete(key);
    return tensor;
  }

  /** Takes back what has been sent. */
  #reap(): void {
    const sent = this.#sending.filter(({ operation }) => operation.isDone());
    this.#sending = this.#sending.filter((sending) => !sent.includes(sending));
    for (const { tensor } of sent) this.#pool.giveBack(tensor);
  }

  #stage({ stage, microBatch }: Chunk): Stage {
    const { direction } = directionOf(this.#run.schedule.layout, microBatch);
    return this.#run.stageFor(stage, direction);
  }

  #isLast(stage: number): boolean {
    return stage === this.#run.schedule.layout.numStages - 1;
  }

  #channel(message: Message): number {
    return streamOf(this.#run.schedule.layout, message);
  }
}

function keyOf(content: Message["content"], boundary: number, { microBatch }: Chunk): string {
  return `${content} ${boundary}.${microBatch}`;
}

function chunkKey({ stage, microBatch }: Chunk): string {
  return `${stage}.${microBatch}`;
}
