/**
 * @file Passes whose shape comes again, as in decoding: recorded when they come a second time, and
 * replayed from then on.
 *
 * Recorded passes have arenas of their own, which begin anew with each pass, so that all of them
 * stand over the same memory and none over anybody else's. A recording is good for its key alone:
 * the key names all that its launches depend on besides the content of its inputs.
 */
import type { Device, LaunchList } from "../device/device.ts";
import { Arena } from "../tensor/arena.ts";

/** The arenas of a pass. */
export interface PassArenas {
  readonly saved: Arena;
  readonly scratch: Arena;
}

interface Recording<Places> {
  readonly places: Places;
  readonly list: LaunchList;
}

/** Lists that are kept; a server's batches have a few dozen shapes. */
const RECORDINGS_MOST = 64;

/** `Places` is where a pass has its inputs and outputs. */
export class RecordedPasses<Places> {
  readonly #device: Device;
  readonly #arenas: PassArenas;
  /** By key, the longest unused first; null: seen once. */
  readonly #recordings = new Map<string, Recording<Places> | null>();

  constructor(device: Device) {
    this.#device = device;
    this.#arenas = {
      saved: new Arena(device.memory, "recorded passes"),
      scratch: new Arena(device.memory, "recorded passes' scratch"),
    };
  }

  /** Whether a pass with this key came before; remembers it. */
  hasSeen(key: string): boolean {
    const known = this.#recordings.get(key);
    this.#recordings.delete(key);
    this.#recordings.set(key, known ?? null);
    if (this.#recordings.size > RECORDINGS_MOST) this.#forgetOldest();
    return known !== undefined;
  }

  /**
   * Run a pass that was seen: `open` allocates its places, `fill` writes the inputs, `launch` runs
   * it. Only `fill` is called where there is a recording.
   */
  run(
    key: string,
    pass: {
      readonly open: (arenas: PassArenas) => Places;
      readonly fill: (places: Places) => void;
      readonly launch: (places: Places, arenas: PassArenas) => void;
    },
  ): Places {
    const known = this.#recordings.get(key);
    if (known !== undefined && known !== null) {
      pass.fill(known.places);
      known.list.replay();
      return known.places;
    }
    const arenas = this.#arenas;
    using _saved = arenas.saved.mark();
    using _scratch = arenas.scratch.mark();
    const places = pass.open(arenas);
    pass.fill(places);
    const list = this.#device.record(() => pass.launch(places, arenas));
    this.#recordings.set(key, { places, list });
    return places;
  }

  #forgetOldest(): void {
    const [key, oldest] = this.#recordings.entries().next().value!;
    this.#recordings.delete(key);
    oldest?.list[Symbol.dispose]();
  }
}
