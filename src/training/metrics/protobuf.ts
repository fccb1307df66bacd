/**
 * @file Writing protocol buffers by hand: the four field kinds that TensorBoard's events need.
 *
 * A message is the concatenation of its fields; a field is a tag (number × 8 + wire type) and a
 * payload. Writing only: five messages with a dozen fields do not justify a library and its schema
 * compiler.
 */
import { assert } from "../../base/errors.ts";

const WIRE_VARINT = 0;
const WIRE_FIXED64 = 1;
const WIRE_BYTES = 2;
const WIRE_FIXED32 = 5;

/** Fields of one message, in the order they are added. */
export class MessageWriter {
  readonly #bytes: number[] = [];

  varint(field: number, value: number): this {
    assert(
      Number.isSafeInteger(value) && value >= 0,
      `varint ${value} must be a whole number >= 0`,
    );
    this.#tag(field, WIRE_VARINT);
    this.#varint(value);
    return this;
  }

  double(field: number, value: number): this {
    this.#tag(field, WIRE_FIXED64);
    const payload = new DataView(new ArrayBuffer(8));
    payload.setFloat64(0, value, true);
    this.#append(new Uint8Array(payload.buffer));
    return this;
  }

  float(field: number, value: number): this {
    this.#tag(field, WIRE_FIXED32);
    const payload = new DataView(new ArrayBuffer(4));
    payload.setFloat32(0, value, true);
    this.#append(new Uint8Array(payload.buffer));
    return this;
  }

  bytes(field: number, value: Uint8Array): this {
    this.#tag(field, WIRE_BYTES);
    this.#varint(value.length);
    this.#append(value);
    return this;
  }

  text(field: number, value: string): this {
    return this.bytes(field, new TextEncoder().encode(value));
  }

  finish(): Uint8Array {
    return Uint8Array.from(this.#bytes);
  }

  #tag(field: number, wireType: number): void {
    this.#varint(field * 8 + wireType);
  }

  #varint(value: number): void {
    let rest = value;
    while (rest >= 128) {
      this.#bytes.push((rest % 128) + 128);
      rest = Math.floor(rest / 128);
    }
    this.#bytes.push(rest);
  }

  #append(bytes: Uint8Array): void {
    for (const byte of bytes) this.#bytes.push(byte);
  }
}
