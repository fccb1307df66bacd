/**
 * @file The memory of the CPU device: one shared, growing address space that is never freed.
 *
 * It is a shared WebAssembly.Memory, so that WebAssembly kernels, machine code and plain TypeScript
 * see the same bytes. It grows in place: a byte offset, and the native address of the first byte,
 * stay valid for the life of the process. (A native address does not keep a buffer alive; memory
 * that is never freed does not need it to.) Larger than 4 GiB it cannot be; a request beyond that
 * is an error that says so.
 *
 * Reservations of 2 MiB and more stand in huge pages of their own, smaller ones together in a few.
 * Whether the system backs such a place by one page of 2 MiB or by 512 small ones as they are
 * touched is said by whoever knows how much of it will be filled (`useHugePages`).
 */
import { assert, OperationalError } from "../../base/errors.ts";
import { ceilDiv, roundUp } from "../../base/integers.ts";
import type { NativeRuntime } from "./native.ts";

/** What the memory needs of native code. */
export type NativeMemory = Pick<NativeRuntime, "addressOf" | "useHugePages">;

const PAGE_BYTES = 65536;
const MAX_PAGES = 65536;
const GROWTH_BYTES = 32 * 2 ** 20;
/** Every reservation starts on a line that vector stores and the page table like. */
const RESERVATION_ALIGNMENT = 4096;
/** Translations of 512 small pages that one entry of the processor's cache holds. */
export const HUGE_PAGE_BYTES: number = 2 * 2 ** 20;

interface Views {
  readonly buffer: SharedArrayBuffer;
  readonly f32: Float32Array<SharedArrayBuffer>;
  readonly f64: Float64Array<SharedArrayBuffer>;
  readonly i32: Int32Array<SharedArrayBuffer>;
  readonly u16: Uint16Array<SharedArrayBuffer>;
  readonly u8: Uint8Array<SharedArrayBuffer>;
}

/** Bytes shared by all threads; reservations only grow. */
export class CpuMemory {
  readonly wasm: WebAssembly.Memory;
  /** Native address of byte 0; 0 where native code is off. Set once, by the native runtime. */
  readonly baseAddress: number;
  #views: Views;
  /** This is the thread that grows the memory: its views are never stale. */
  readonly #isOwner: boolean;
  readonly #native: NativeMemory | null;
  // Offset 0 is never handed out: a zero offset is then always a mistake.
  #reservedBytes = RESERVATION_ALIGNMENT;
  /** Of the page that small reservations share now; at first there is none. */
  #smallAt = RESERVATION_ALIGNMENT;
  #smallEnd = RESERVATION_ALIGNMENT;
  #numReservations = 0;

  private constructor(
    wasm: WebAssembly.Memory,
    baseAddress: number,
    isOwner: boolean,
    native: NativeMemory | null,
  ) {
    this.wasm = wasm;
    this.#native = native;
    this.baseAddress = baseAddress;
    this.#isOwner = isOwner;
    this.#views = viewsOf(wasm);
  }

  /** New memory; `native` where native code is possible. */
  static create(native: NativeMemory | null): CpuMemory {
    const wasm = new WebAssembly.Memory({
      initial: ceilDiv(GROWTH_BYTES, PAGE_BYTES),
      maximum: MAX_PAGES,
      shared: true,
    });
    const baseAddress = native?.addressOf(new Uint8Array(wasm.buffer)) ?? 0;
    return new CpuMemory(wasm, baseAddress, true, native);
  }

  /** The same memory, seen from a worker thread. */
  static attach(wasm: WebAssembly.Memory, baseAddress: number): CpuMemory {
    return new CpuMemory(wasm, baseAddress, false, null);
  }

  get byteLength(): number {
    return this.#current().buffer.byteLength;
  }

  /** Where the last reservation ends. */
  get reservedBytes(): number {
    return this.#reservedBytes;
  }

  /** The largest reservation for which the memory need not grow. */
  get unreservedBytes(): number {
    return this.byteLength - this.endOfHugePage(this.#reservedBytes);
  }

  /** Spans handed out so far. */
  get numReservations(): number {
    return this.#numReservations;
  }

  /**
   * A fresh span of zeros, never to be returned. Only the thread that created the memory may call
   * this.
   */
  reserve(byteLength: number): number {
    assert(
      Number.isSafeInteger(byteLength) && byteLength >= 0,
      `byteLength (${byteLength}) must be a whole number >= 0`,
    );
    this.#numReservations++;
    if (byteLength >= HUGE_PAGE_BYTES) return this.#reserveHuge(byteLength);
    const bytes = roundUp(byteLength, RESERVATION_ALIGNMENT);
    if (this.#smallAt + bytes > this.#smallEnd) {
      this.#smallAt = this.#reserveHuge(HUGE_PAGE_BYTES);
      this.#smallEnd = this.#smallAt + HUGE_PAGE_BYTES;
    }
    const byteOffset = this.#smallAt;
    this.#smallAt += bytes;
    return byteOffset;
  }

  /**
   * These bytes will be written from end to end, so that huge pages within them waste nothing. Said
   * before the first write; no promise that there are any.
   */
  useHugePages(byteOffset: number, end: number): void {
    const first = this.endOfHugePage(byteOffset);
    const last = this.endOfHugePage(end - HUGE_PAGE_BYTES + 1);
    if (first < last) this.#native?.useHugePages(this.baseAddress + first, last - first);
  }

  /** The first byte from this one on that begins a huge page. */
  endOfHugePage(byteOffset: number): number {
    return roundUp(this.baseAddress + byteOffset, HUGE_PAGE_BYTES) - this.baseAddress;
  }

  #reserveHuge(byteLength: number): number {
    const byteOffset = this.endOfHugePage(this.#reservedBytes);
    const end = byteOffset + roundUp(byteLength, RESERVATION_ALIGNMENT);
    const missing = end - this.byteLength;
    if (missing > 0) this.#grow(missing);
    this.#reservedBytes = end;
    return byteOffset;
  }

  get f32(): Float32Array<SharedArrayBuffer> {
    return this.#current().f32;
  }

  get f64(): Float64Array<SharedArrayBuffer> {
    return this.#current().f64;
  }

  get i32(): Int32Array<SharedArrayBuffer> {
    return this.#current().i32;
  }

  get u16(): Uint16Array<SharedArrayBuffer> {
    return this.#current().u16;
  }

  get u8(): Uint8Array<SharedArrayBuffer> {
    return this.#current().u8;
  }

  /**
   * Views go stale when another thread grows the memory: they are made again when the buffer has
   * changed. Asking for the buffer is slow.
   */
  #current(): Views {
    if (this.#isOwner) return this.#views;
    if (this.#views.buffer !== (this.wasm.buffer as unknown)) this.#views = viewsOf(this.wasm);
    return this.#views;
  }

  #grow(missing: number): void {
    const have = this.byteLength / PAGE_BYTES;
    const pages = Math.min(ceilDiv(roundUp(missing, GROWTH_BYTES), PAGE_BYTES), MAX_PAGES - have);
    if (pages * PAGE_BYTES < missing) {
      throw new OperationalError(
        "device.memory",
        `the CPU device needs ${gib(this.byteLength + missing)} GiB, and its address space ` +
          "ends at 4 GiB; " +
          "use a smaller model, batch or sequence length",
      );
    }
    try {
      this.wasm.grow(pages);
    } catch (cause) {
      throw new OperationalError(
        "device.memory",
        `the operating system refused ${gib(this.byteLength + missing)} GiB of memory; ` +
          "use a smaller model, batch or sequence length, or free memory",
        {},
        cause,
      );
    }
    this.#views = viewsOf(this.wasm);
  }
}

function gib(bytes: number): string {
  return (bytes / 2 ** 30).toFixed(2);
}

function viewsOf(wasm: WebAssembly.Memory): Views {
  const buffer = wasm.buffer as unknown as SharedArrayBuffer;
  return {
    buffer,
    f32: new Float32Array(buffer),
    f64: new Float64Array(buffer),
    i32: new Int32Array(buffer),
    u16: new Uint16Array(buffer),
    u8: new Uint8Array(buffer),
  };
}
