/**
 * @file The training pass that comes again: recorded when it comes a second time in a row, replayed
 * from then on.
 *
 * Arenas begin every pass at the same places and no launch of it follows from data, so that passes
 * of one shape with the same options are the same launches over the same memory. They differ in
 * their tokens, and positions may have been overwritten by passes of another shape: these are
 * written anew. What comes out is read when all is over.
 */
import type { Device, LaunchList } from "../device/device.ts";
import type { Batch } from "./model-types.ts";
import { refillTokens } from "./part-pass.ts";
import { fillPositions } from "./rope.ts";
import type { TrainingPass } from "./training-pass.ts";

export class RecordedStep {
  readonly #device: Device;
  /** Of the pass before. */
  #key: string | null = null;
  #recording: (TrainingPass & { readonly list: LaunchList }) | null = null;

  constructor(device: Device) {
    this.#device = device;
  }

  /**
   * Run `launch` or what it launched before under this key, which names all that its launches
   * depend on besides the batch's tokens; null: it depends on more.
   */
  run(key: string | null, batch: Batch, launch: () => TrainingPass): TrainingPass {
    const isKnown = key !== null && key === this.#key;
    if (!isKnown) {
      this.#forget();
      const pass = launch();
      this.#key = key;
      return pass;
    }
    if (this.#recording === null) return this.#record(launch);
    refillTokens(this.#recording.forward, batch);
    fillPositions(this.#recording.pass);
    this.#recording.list.replay();
    return this.#recording;
  }

  #record(launch: () => TrainingPass): TrainingPass {
    const passes: TrainingPass[] = [];
    const list = this.#device.record(() => passes.push(launch()));
    this.#recording = { ...passes[0]!, list };
    return this.#recording;
  }

  #forget(): void {
    this.#recording?.list[Symbol.dispose]();
    this.#recording = null;
    this.#key = null;
  }
}
