/** @file The assembler against committed bytes, against objdump, and against misuse. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { InvariantError } from "../../base/errors.ts";
import { X64 } from "./assembler.ts";
import { encodingCases, intelText } from "./encoding-test-support.ts";
import type { Operands, VectorOp } from "./instructions.ts";
import {
  bcst,
  k,
  type MaskRegister,
  type Memory,
  mem,
  merging,
  r,
  tmm,
  type Vector,
  xmm,
  zeroing,
  zmm,
} from "./operands.ts";

const GOLDEN = new URL("./encodings.golden.txt", import.meta.url);

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

describe("the x86-64 assembler", () => {
  const cases = encodingCases();

  it("encodes every instruction of the table as the committed bytes", () => {
    const lines = cases.map(({ code, text }) => `${hex(code)} ${text}`);
    if (process.env["UPDATE_GOLDENS"] === "1") writeFileSync(GOLDEN, `${lines.join("\n")}\n`);
    const golden = readFileSync(GOLDEN, "utf8").trimEnd().split("\n");
    assert.ok(golden.length > 700, `${golden.length} forms`);
    assert.deepEqual(lines, golden);
  });

  it("says what objdump says", (t) => {
    const folder = mkdtempSync(join(tmpdir(), "hadal-x64-"));
    try {
      const file = join(folder, "code.bin");
      writeFileSync(file, Buffer.concat(cases.map(({ code }) => code)));
      const options = [
        "-D",
        "-b",
        "binary",
        "-m",
        "i386:x86-64",
        "-M",
        "intel",
        "--no-show-raw-insn",
      ];
      const output = execFileSync("objdump", [...options, file], {
        encoding: "utf8",
        maxBuffer: 2 ** 26,
      });
      const lines = output.split("\n").filter((line) => /^\s+[0-9a-f]+:/.test(line));
      const texts = lines.map((line) => intelText(line.replace(/^\s+[0-9a-f]+:\s*/, "")));
      assert.deepEqual(
        texts,
        cases.map(({ text }) => text),
      );
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== "ENOENT") throw cause;
      t.skip("objdump is not installed; the committed bytes were checked against it");
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it("jumps forwards and backwards, near and short", () => {
    const a = new X64();
    const start = a.label();
    const end = a.label();
    a.bind(start);
    a.j("e", end);
    a.jmp(start);
    a.call(start);
    a.bind(end);
    a.ret();
    // je +7 (near); jmp -8 (short); call -13 (near); ret
    assert.equal(hex(a.code()), `0f8407000000${"ebf8"}${"e8f3ffffff"}c3`);
  });

  it("uses a near jump where a short one cannot reach", () => {
    const a = new X64();
    const start = a.label();
    a.bind(start);
    for (let i = 0; i < 126; i++) a.ret();
    a.jmp(start);
    a.jmp(start);
    assert.equal(hex(a.code().subarray(126)), "eb80e97bffffff");
  });

  it("aligns with as few no-operations as the manual has", () => {
    const a = new X64();
    a.ret();
    a.align(16);
    assert.equal(hex(a.code()), "c30f1f8400000000000f1f8000000000");
  });

  it("refuses labels that are unbound, bound twice or foreign", () => {
    const a = new X64();
    const label = a.label();
    a.jmp(label);
    assert.throws(() => a.code(), InvariantError);
    a.bind(label);
    assert.throws(() => a.bind(label), /bound twice/);
    assert.throws(() => a.jmp(new X64().label()), /another assembler/);
    assert.equal(a.code().length, 5);
  });

  it("refuses operands that no instruction has", () => {
    const a = new X64();
    assert.throws(() => zmm(32), /0\.\.31/);
    assert.throws(() => k(8), /0\.\.7/);
    assert.throws(() => tmm(-1), /0\.\.7/);
    assert.throws(() => mem(r.rax, 0, r.rsp), /rsp/);
    assert.throws(() => mem(r.rax, 2 ** 31), /32 bits/);
    assert.throws(() => a.v("vmovups", [zmm(0), mem(r.rax)], merging(k(0))), /k0/);
    assert.throws(() => a.v("vmovups", [mem(r.rax), zmm(0)], zeroing(k(1))), /zeroed/);
    assert.throws(() => a.v("vpslld", [zmm(0), zmm(1), 256]), /byte/);
    assert.throws(() => a.v("vpaddw", [zmm(0), zmm(1), bcst(mem(r.rax))]), /broadcast/);
    assert.throws(() => a.v("vmovss m32", [xmm(0), bcst(mem(r.rax))]), /broadcast/);
    assert.throws(() => a.shl(r.rax, 64), /0\.\.63/);
    assert.throws(() => a.add(r.rax, 2 ** 32), /32 bits/);
    assert.throws(() => a.tileloadd(tmm(0), mem(r.rax)), /stride/);
  });

  it("lets types refuse operands of a wrong kind", () => {
    type Takes<Op extends VectorOp, Args> = Args extends Operands<Op> ? true : false;
    type Mem = Memory;
    const checks: [
      Takes<"vaddps", [Vector, Vector, Mem]>,
      Takes<"vaddps", [Vector, MaskRegister, Vector]>,
      Takes<"vcmpps", [MaskRegister, Vector, Vector, number]>,
      Takes<"vcmpps", [Vector, Vector, Vector, number]>,
      Takes<"vpshufd", [Vector, Vector]>,
      Takes<"vmovntps", [Mem, Vector]>,
      Takes<"vmovntps", [Vector, Mem]>,
    ] = [true, false, true, false, false, true, false];
    assert.equal(checks.length, 7);
  });
});
