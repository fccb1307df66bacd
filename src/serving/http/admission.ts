/**
 * @file Who is being served: how many run, how many bytes of bodies are held, and whether more may
 * come.
 *
 * A request runs from the end of its body on; one whose body still arrives holds bytes but no
 * place, so clients that send slowly cannot keep others out. Bytes are counted as they come, not as
 * they were announced, and are held until the request has been answered: what was parsed from them
 * lives as long.
 */
import { counted } from "../../base/counted.ts";
import { OperationalError } from "../../base/errors.ts";

export interface AdmissionLimits {
  /** Requests that may run or wait for the engine at once. */
  readonly requestsMax: number;
  /** Bytes of all requests' bodies together. */
  readonly bodiesBytesMax: number;
}

export class Admission {
  readonly #limits: AdmissionLimits;
  #open = 0;
  #running = 0;
  #bytes = 0;
  #isDraining = false;
  readonly #waiters: (() => void)[] = [];

  constructor(limits: AdmissionLimits) {
    this.#limits = limits;
  }

  /** Requests that were let in and are not answered yet. */
  get numOpen(): number {
    return this.#open;
  }

  /** Bytes of their bodies. */
  get bodyBytes(): number {
    return this.#bytes;
  }

  get isDraining(): boolean {
    return this.#isDraining;
  }

  /** Let a request in, or refuse it before anything of its body is read. */
  enter(): Visit {
    if (this.#isDraining) {
      throw new OperationalError("serving.draining", "the server is ending; try another");
    }
    this.#refuseIfFull();
    this.#open++;
    let [bytes, isRunning] = [0, false];
    return {
      hold: (count) => {
        if (this.#bytes + count > this.#limits.bodiesBytesMax) {
          const most = `${this.#limits.bodiesBytesMax} bytes`;
          const message = `the requests being read fill the ${most} kept for them; come again`;
          throw new OperationalError("serving.busy", message);
        }
        bytes += count;
        this.#bytes += count;
      },
      run: () => {
        this.#refuseIfFull();
        isRunning = true;
        this.#running++;
      },
      [Symbol.dispose]: () => {
        this.#bytes -= bytes;
        if (isRunning) this.#running--;
        this.#open--;
        if (this.#open === 0) for (const wake of this.#waiters.splice(0)) wake();
      },
    };
  }

  /** Let nobody in any more; resolves when those that were let in have left. */
  async drain(): Promise<void> {
    this.#isDraining = true;
    if (this.#open === 0) return;
    await new Promise<void>((resolve) => {
      this.#waiters.push(resolve);
    });
  }

  #refuseIfFull(): void {
    const { requestsMax } = this.#limits;
    if (this.#running < requestsMax) return;
    const most = counted(requestsMax, "request");
    const message = `at most ${most} may be answered or wait at once; come again`;
    throw new OperationalError("serving.busy", message);
  }
}

/** A request that was let in. */
export interface Visit extends Disposable {
  /** Count bytes of its body that have arrived; refuses what the server cannot hold. */
  hold(bytes: number): void;
  /** Its body is complete: from now on it takes a place. */
  run(): void;
}
