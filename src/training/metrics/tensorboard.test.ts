/**
 * @file Event files, read back by a parser written from the format alone, and known CRC-32C
 * vectors.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { crc32c } from "./crc32c.ts";
import { encodeFileStart, encodeScalars, eventFileName } from "./tensorboard.ts";

/**
 * Bit by bit and most significant bit first, so that it shares nothing with the table of the
 * product.
 */
function slowCrc32c(bytes: Uint8Array): number {
  const reflect = (value: bigint, bits: number): bigint =>
    BigInt(`0b${value.toString(2).padStart(bits, "0").split("").reverse().join("")}`);
  let crc = 0xffffffffn;
  for (const byte of bytes) {
    crc ^= reflect(BigInt(byte), 8) << 24n;
    for (let bit = 0; bit < 8; bit++) {
      crc = (crc << 1n) ^ (crc & 0x80000000n ? 0x1edc6f41n : 0n);
      crc &= 0xffffffffn;
    }
  }
  return Number(reflect(crc, 32) ^ 0xffffffffn);
}

function unmask(masked: number): number {
  const rotated = (masked - 0xa282ead8) >>> 0;
  return ((rotated >>> 17) | (rotated << 15)) >>> 0;
}

type Field = number | Uint8Array;

function parseMessage(bytes: Uint8Array): Map<number, Field[]> {
  const fields = new Map<number, Field[]>();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  let at = 0;
  const varint = (): number => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = BigInt(view.getUint8(at++));
      value |= (byte & 127n) << shift;
      if (byte < 128n) return Number(value);
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    let value: Field;
    if (tag % 8 === 0) value = varint();
    else if (tag % 8 === 1) {
      value = view.getFloat64(at, true);
      at += 8;
    } else if (tag % 8 === 5) {
      value = view.getFloat32(at, true);
      at += 4;
    } else {
      assert.equal(tag % 8, 2, "a wire type the format has");
      const length = varint();
      at += length;
      value = bytes.slice(at - length, at);
    }
    const number = Math.floor(tag / 8);
    fields.set(number, [...(fields.get(number) ?? []), value]);
  }
  return fields;
}

function parseRecords(bytes: Uint8Array): Map<number, Field[]>[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const events: Map<number, Field[]>[] = [];
  let at = 0;
  while (at < bytes.length) {
    const length = Number(view.getBigUint64(at, true));
    const data = bytes.slice(at + 12, at + 12 + length);
    assert.equal(unmask(view.getUint32(at + 8, true)), slowCrc32c(bytes.slice(at, at + 8)));
    assert.equal(unmask(view.getUint32(at + 12 + length, true)), slowCrc32c(data));
    events.push(parseMessage(data));
    at += 16 + length;
  }
  return events;
}

const text = (field: Field | undefined): string => new TextDecoder().decode(field as Uint8Array);

test("CRC-32C gives the values of RFC 3720 B.4", () => {
  assert.equal(crc32c(new TextEncoder().encode("123456789")), 0xe3069283);
  assert.equal(crc32c(new Uint8Array(32)), 0x8a9136aa);
  assert.equal(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43);
  assert.equal(crc32c(Uint8Array.from({ length: 32 }, (_, index) => index)), 0x46dd794e);
});

test("a file starts with its version, byte for byte as the format has it", () => {
  const bytes = encodeFileStart(1.5, 0).subarray(0, 40);
  // length 24 · its masked CRC · field 1 double 1.5 · field 3 "brain.Event:2" · masked CRC
  assert.equal(
    Buffer.from(bytes).toString("hex"),
    "1800000000000000" +
      Buffer.from(bytes.subarray(8, 12)).toString("hex") +
      "09000000000000f83f" +
      `1a0d${Buffer.from("brain.Event:2").toString("hex")}` +
      Buffer.from(bytes.subarray(36)).toString("hex"),
  );
  const [event] = parseRecords(bytes);
  assert.equal(text(event?.get(3)?.[0]), "brain.Event:2");
});

test("scalars come back with their step, tag and value", () => {
  const scalars = { "loss/train": 2.5, "expert/maxVio": 0.125, "speed/tokens": 1234.5 };
  const [event, none] = parseRecords(encodeScalars(1e9 + 0.25, 300_000, scalars));
  assert.equal(none, undefined);
  assert.equal(event?.get(1)?.[0], 1e9 + 0.25);
  assert.equal(event?.get(2)?.[0], 300_000);
  const summary = parseMessage(event?.get(5)?.[0] as Uint8Array);
  const pairs = (summary.get(1) ?? []).map((value) => {
    const fields = parseMessage(value as Uint8Array);
    return [text(fields.get(1)?.[0]), fields.get(2)?.[0]];
  });
  assert.deepEqual(Object.fromEntries(pairs), scalars);
});

test("a NaN is written as a NaN, and steps above 2^32 survive", () => {
  const [event] = parseRecords(encodeScalars(0, 2 ** 40 + 3, { loss: Number.NaN }));
  assert.equal(event?.get(2)?.[0], 2 ** 40 + 3);
  const value = parseMessage(event?.get(5)?.[0] as Uint8Array).get(1)?.[0] as Uint8Array;
  assert.ok(Number.isNaN(parseMessage(value).get(2)?.[0]));
});

test("a file announces a session start at its first step", () => {
  const [version, start] = parseRecords(encodeFileStart(7, 120));
  assert.equal(text(version?.get(3)?.[0]), "brain.Event:2");
  assert.equal(start?.get(2)?.[0], 120);
  assert.equal(parseMessage(start?.get(7)?.[0] as Uint8Array).get(1)?.[0], 1);
  assert.match(eventFileName(1700000000.9, 1), /^events\.out\.tfevents\.1700000000\.hadal\.1$/);
});
