/**
 * @file Passes whose shape comes again, as in decoding: recorded when they come a second time, and
 * replayed from then on.
 *
 * Recorded passes have arenas of their own, which begin anew with each pass, so that all of them
 * stand over the same memory and none over anybody else's. A recording is good for its key alone:
 * the key names all that its launches depend on besides the content of its inputs. Where more
 * follows from data, as what goes to which rank, a pass leaves a gap between its recorded launches:
 * work that is done anew each time.
 */
import type { Device, LaunchList } from "../device/device.ts";
import type { Operation } from "../parallel/communicator/communicator.ts";
import { finish, type Work } from "../parallel/communicator/work.ts";
import { Arena } from "../tensor/arena.ts";

/** The arenas of a pass. */
export interface PassArenas {
  readonly saved: Arena;
  readonly scratch: Arena;
}

/** What runs between recorded launches, in arenas of its own. */
type Gap = (arenas: PassArenas) => Work<void>;

/** The arenas of a pass that is recorded. */
export interface RecordedArenas extends PassArenas {
  /** Leaves a gap, which stays good for later runs. */
  readonly leave: (gap: Gap) => Work<void>;
}

/** Launches up to a gap, and that; the last ones have none behind them. */
interface Segment {
  readonly list: LaunchList;
  readonly gap: Gap | null;
}

interface Recording<Places> {
  readonly places: Places;
  readonly segments: readonly Segment[];
}

/** A pass to be recorded: it yields to whoever records, once for each gap. */
interface RecordablePass<Places> {
  /** Allocates its places. */
  readonly open: (arenas: PassArenas) => Places;
  /** Writes its inputs. */
  readonly fill: (places: Places) => void;
  readonly launch: (places: Places, arenas: RecordedArenas) => Work<void>;
}

/** Lists that are kept; a server's batches have a few dozen shapes. */
const RECORDINGS_MOST = 64;
/** Yielded at a gap. */
const AT_GAP: Operation = { isDone: () => true, wait: () => {} };

/** `Places` is where a pass has its inputs and outputs. */
export class RecordedPasses<Places> {
  readonly #device: Device;
  readonly #arenas: PassArenas;
  /** What gaps take is as large as their data say: it stands apart. */
  readonly #gapArenas: PassArenas;
  /** By key, the longest unused first; null: seen once. */
  readonly #recordings = new Map<string, Recording<Places> | null>();

  constructor(device: Device) {
    this.#device = device;
    const arenas = (name: string): PassArenas => ({
      saved: new Arena(device.memory, name),
      scratch: new Arena(device.memory, `${name}' scratch`),
    });
    this.#arenas = arenas("recorded passes");
    this.#gapArenas = arenas("recorded passes' gaps");
  }

  /** Whether a pass with this key came before; remembers it. */
  hasSeen(key: string): boolean {
    const known = this.#recordings.get(key);
    this.#recordings.delete(key);
    this.#recordings.set(key, known ?? null);
    if (this.#recordings.size > RECORDINGS_MOST) this.#forgetOldest();
    return known !== undefined;
  }

  /** Run a pass that was seen. Only `fill` is called where there is a recording. */
  run(key: string, pass: RecordablePass<Places>): Places {
    const known = this.#recordings.get(key);
    if (known !== undefined && known !== null) {
      pass.fill(known.places);
      for (const { list, gap } of known.segments) {
        list.replay();
        if (gap !== null) this.#cross(gap);
      }
      return known.places;
    }
    const arenas = this.#arenas;
    using _saved = arenas.saved.mark();
    using _scratch = arenas.scratch.mark();
    const places = pass.open(arenas);
    pass.fill(places);
    this.#recordings.set(key, { places, segments: this.#record(pass, places) });
    return places;
  }

  #record(pass: RecordablePass<Places>, places: Places): readonly Segment[] {
    const segments: Segment[] = [];
    const gaps: Gap[] = [];
    const leave = function* (gap: Gap): Work<void> {
      gaps.push(gap);
      yield AT_GAP;
    };
    const work = pass.launch(places, { ...this.#arenas, leave });
    try {
      for (let isDone = false; !isDone; ) {
        const list = this.#device.record(() => {
          isDone = work.next().done === true;
        });
        const gap = gaps[segments.length] ?? null;
        segments.push({ list, gap });
        if (gap !== null) this.#cross(gap);
      }
    } finally {
      work.return();
    }
    return segments;
  }

  #cross(gap: Gap): void {
    const { saved, scratch } = this.#gapArenas;
    using _saved = saved.mark();
    using _scratch = scratch.mark();
    finish(gap(this.#gapArenas));
  }

  #forgetOldest(): void {
    const [key, oldest] = this.#recordings.entries().next().value!;
    this.#recordings.delete(key);
    for (const { list } of oldest?.segments ?? []) list[Symbol.dispose]();
  }
}
