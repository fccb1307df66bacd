/**
 * @file Test cases of the assembler: every instruction with random operands, and the text that a
 * disassembler should print for it (Intel syntax, as objdump writes it, a little normalised).
 *
 * The operands come from a fixed seed, so that the bytes can be committed.
 */
import { Random } from "../../base/random.ts";
import { X64 } from "./assembler.ts";
import {
  type Form,
  INSTRUCTIONS,
  type Operands,
  VECTOR_OPS,
  type VectorOp,
} from "./instructions.ts";
import {
  bcst,
  type Gp,
  gpName,
  k,
  type Mask,
  type MaskRegister,
  type Memory,
  mem,
  merging,
  r,
  type Tile,
  tmm,
  type Vector,
  xmm,
  ymm,
  zeroing,
  zmm,
} from "./operands.ts";

export interface EncodingCase {
  readonly code: Uint8Array;
  readonly text: string;
}

type Operand = Gp | Vector | MaskRegister | Tile | Memory | number;

const GPS = Object.values(r);
const LOW_32 = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];

/** The text of one disassembled line, without what differs between versions of objdump. */
export function intelText(line: string): string {
  return line
    .replace(/^\{evex\} /, "")
    .replace(/\{1to\d+\}/, "")
    .replace(/[DQ]WORD BCST (\[[^\]]*\])/, "$1{1to}")
    .replace(/\b(?:[XYZ]MM|[DQ])?(?:BYTE|WORD) PTR /g, "")
    .replace(/\s+#.*$/, "")
    .replace(/\s+/g, " ")
    .trim();
}

function name32(register: Gp): string {
  return LOW_32[register.index] ?? `${gpName(register)}d`;
}

function text(operand: Operand): string {
  if (typeof operand === "number") return `0x${operand.toString(16)}`;
  switch (operand.kind) {
    case "gp":
      return gpName(operand);
    case "vector":
      return `${{ 128: "xmm", 256: "ymm", 512: "zmm" }[operand.bits]}${operand.index}`;
    case "mask":
      return `k${operand.index}`;
    case "tile":
      return `tmm${operand.index}`;
    case "memory": {
      const { base, index, scale, displacement } = operand;
      const scaled = index === null ? "" : `+${gpName(index)}*${scale}`;
      const sign = displacement < 0 ? "-" : "+";
      const shown = displacement !== 0 || (base.index & 7) === 5;
      const offset = shown ? `${sign}0x${Math.abs(displacement).toString(16)}` : "";
      return `[${gpName(base)}${scaled}${offset}]${operand.broadcast ? "{1to}" : ""}`;
    }
  }
}

/** Source vectors narrower than the destination (or, for `mr`, the destination than the source). */
const NARROW: Partial<Record<string, (index: number) => Vector>> = {
  half: ymm,
  quarter: xmm,
  "2": xmm,
  "4": xmm,
  "8": xmm,
  "16": xmm,
  "32": ymm,
};

/** Instructions on the low lane alone. */
const LOW_LANE = /^v(add|sub|mul|div|max|sqrt)ss$|^vcvtt?s[dsi]2s|^vmovs[sd] /;

/** Forms that take no mask, or whose mask selects the lanes compared (tested by the kernels). */
const UNMASKED_FORMS = new Set<string>(["mg", "gm", "kr", "rk", "kvm", "kvmi", "kmi", "store"]);

class CaseMaker {
  readonly #random = new Random(1, "x64 encodings");
  readonly cases: EncodingCase[] = [];

  below(limit: number): number {
    return this.#random.uint32() % limit;
  }

  gp(): Gp {
    return GPS[this.below(16)]!;
  }

  memory(): Memory {
    const displacement = [0, 4, 64, 128, -64, 1000, 4096, -8192, 127, 2 ** 31 - 1][this.below(10)]!;
    const candidate = this.below(2) === 0 ? null : this.gp();
    const index = candidate === r.rsp ? null : candidate;
    return mem(this.gp(), displacement, index, ([1, 2, 4, 8] as const)[this.below(4)]!);
  }

  mask(): MaskRegister {
    return k(1 + this.below(7));
  }

  add(emit: (a: X64) => void, line: string): void {
    const a = new X64();
    emit(a);
    this.cases.push({ code: a.code(), text: line });
  }

  vector(op: VectorOp): void {
    const [form, , width]: readonly [Form, string, string, string] = INSTRUCTIONS[op];
    const scalar = LOW_LANE.test(op);
    const wide = scalar ? xmm : width === "full32" ? [zmm, ymm][this.below(2)]! : zmm;
    const narrow = scalar ? xmm : (NARROW[width] ?? wide);
    const full = (): Vector => wide(this.below(32));
    const immediate = this.below(form.startsWith("k") && op !== "vfpclassps" ? 3 : 256);
    const canRead = width !== "none" && this.below(2) === 0;
    const element = width === "full32" || width === "full64";
    const readable = element && this.below(2) === 0 ? bcst(this.memory()) : this.memory();
    const source = canRead || op === "vbroadcastf32x4" ? readable : narrow(this.below(32));
    const operands = this.operandsOf(op, form, { full, source, immediate, narrow });
    const writesVector = (operands[0] as Exclude<Operand, number>).kind === "vector";
    const canMask = !scalar && !UNMASKED_FORMS.has(form) && !/^vmov[dq]$/.test(op);
    const masked = canMask && this.below(3) === 0;
    const mask = masked ? (writesVector ? zeroing : merging)(this.mask()) : null;
    this.add(
      (a) => a.v(op, operands as never as Operands<typeof op>, mask),
      vectorText(op, operands, mask),
    );
  }

  operandsOf(
    op: VectorOp,
    form: Form,
    parts: {
      full: () => Vector;
      source: Vector | Memory;
      immediate: number;
      narrow: (index: number) => Vector;
    },
  ): readonly Operand[] {
    const { full, source, immediate, narrow } = parts;
    const halved = op === "vcvtneps2bf16" || op === "vcvtpd2ps";
    switch (form) {
      case "rvm":
        return [full(), full(), source];
      case "rvmi":
        return [full(), full(), source, immediate];
      case "rm":
        // The destination is half as wide as the source; a memory operand would leave that open.
        return halved ? [ymm(this.below(32)), zmm(this.below(32))] : [full(), source];
      case "rmi":
      case "vmi":
        return [full(), source, immediate];
      case "mr":
        return [source.kind === "memory" ? source : narrow(this.below(32)), full()];
      case "mri":
        return [source.kind === "memory" ? source : narrow(this.below(32)), full(), immediate];
      case "move":
        return this.below(2) === 0
          ? [this.memory(), full()]
          : [full(), / m(32|64)$/.test(op) ? this.memory() : source];
      case "store":
        return [this.memory(), full()];
      case "kvm":
        return [this.mask(), full(), source];
      case "kvmi":
        return [this.mask(), full(), source, immediate];
      case "kmi":
        return [this.mask(), source, immediate];
      case "rg":
        return [/^vmov/.test(op) ? xmm(this.below(32)) : full(), this.gp()];
      case "mg":
        return [this.gp(), xmm(this.below(32))];
      case "gm":
        return [this.gp(), source];
      case "rvg":
        return [full(), full(), source.kind === "memory" ? source : this.gp()];
      case "rk":
        return [full(), this.mask()];
      case "kr":
        return [this.mask(), full()];
    }
  }
}

const COMPARE_FLOAT = ["eq", "lt", "le", "unord", "neq", "nlt", "nle", "ord"];
const COMPARE_INTEGER = ["eq", "lt", "le"];

function vectorText(op: VectorOp, operands: readonly Operand[], mask: Mask | null): string {
  const [mnemonic = "", kind] = op.split(" ");
  const parts = operands.map((operand) =>
    typeof operand === "object" && operand.kind === "gp" && (kind === "r32" || op === "vmovd")
      ? name32(operand)
      : text(operand),
  );
  if (mask !== null) parts[0] += `{k${mask.k.index}}${mask.z ? "{z}" : ""}`;
  const compare = /^v(p?)cmp(u?)(\w+)$/.exec(mnemonic);
  if (compare === null) return `${mnemonic} ${parts.join(",")}`;
  const names = compare[1] === "p" ? COMPARE_INTEGER : COMPARE_FLOAT;
  const predicate = names[operands[3] as number];
  return `v${compare[1]}cmp${predicate}${compare[2]}${compare[3]} ${parts.slice(0, 3).join(",")}`;
}

function integerCases(maker: CaseMaker): void {
  for (let i = 0; i < 6; i++) {
    const [d, s, m] = [maker.gp(), maker.gp(), maker.memory()];
    const [dn, sn, mt] = [gpName(d), gpName(s), text(m)];
    for (const op of ["add", "or", "and", "sub", "xor", "cmp"] as const) {
      maker.add((a) => a[op](d, s), `${op} ${dn},${sn}`);
      maker.add((a) => a[op](d, m), `${op} ${dn},${mt}`);
      maker.add((a) => a[op](m, s), `${op} ${mt},${sn}`);
      maker.add((a) => a[op](d, 1000), `${op} ${dn},0x3e8`);
      maker.add((a) => a[op](d, -3), `${op} ${dn},0xfffffffffffffffd`);
    }
    maker.add((a) => a.mov(d, s), `mov ${dn},${sn}`);
    maker.add((a) => a.mov(d, m), `mov ${dn},${mt}`);
    maker.add((a) => a.mov(m, s), `mov ${mt},${sn}`);
    maker.add((a) => a.mov(d, 123456), `mov ${dn},0x1e240`);
    maker.add((a) => a.mov(d, 0x123456789abc), `movabs ${dn},0x123456789abc`);
    maker.add((a) => a.mov32(d, m), `mov ${name32(d)},${mt}`);
    maker.add((a) => a.mov32(m, s), `mov ${mt},${name32(s)}`);
    maker.add((a) => a.movsxd(d, m), `movsxd ${dn},${mt}`);
    maker.add((a) => a.movzx8(d, m), `movzx ${dn},${mt}`);
    maker.add((a) => a.movzx16(d, m), `movzx ${dn},${mt}`);
    maker.add((a) => a.lea(d, m), `lea ${dn},${mt}`);
    maker.add((a) => a.test(d, s), `test ${dn},${sn}`);
    maker.add((a) => a.imul(d, m), `imul ${dn},${mt}`);
    maker.add((a) => a.imul(d, s, 48), `imul ${dn},${sn},0x30`);
    maker.add((a) => a.neg(d), `neg ${dn}`);
    maker.add((a) => a.shl(d, 5), `shl ${dn},0x5`);
    maker.add((a) => a.shr(d, 63), `shr ${dn},0x3f`);
    maker.add((a) => a.sar(d, 7), `sar ${dn},0x7`);
    maker.add((a) => a.cmov("l", d, s), `cmovl ${dn},${sn}`);
    maker.add((a) => a.cmov("a", d, m), `cmova ${dn},${mt}`);
    maker.add((a) => a.bzhi(d, s, r.r9), `bzhi ${dn},${sn},r9`);
    maker.add((a) => a.push(d), `push ${dn}`);
    maker.add((a) => a.pop(d), `pop ${dn}`);
    maker.add((a) => a.prefetch(m), `prefetcht0 ${mt}`);
    maker.add((a) => a.prefetch(m, 1), `prefetcht1 ${mt}`);
    maker.add((a) => a.kmovw(k(i), d), `kmovw k${i},${name32(d)}`);
    maker.add((a) => a.kmovd(k(i), d), `kmovd k${i},${name32(d)}`);
    maker.add((a) => a.kmovq(k(i), d), `kmovq k${i},${dn}`);
    maker.add((a) => a.kmovdToGp(d, k(i)), `kmovd ${name32(d)},k${i}`);
    maker.add((a) => a.kandw(k(i), k(7), k(1)), `kandw k${i},k7,k1`);
    maker.add((a) => a.korw(k(i), k(6), k(2)), `korw k${i},k6,k2`);
    maker.add((a) => a.kxnorw(k(i), k(5), k(3)), `kxnorw k${i},k5,k3`);
    maker.add((a) => a.knotw(k(i), k(4)), `knotw k${i},k4`);
    maker.add((a) => a.kortestw(k(i), k(7)), `kortestw k${i},k7`);
  }
}

function tileCases(maker: CaseMaker): void {
  for (let i = 0; i < 8; i++) {
    const base = maker.gp();
    const m = mem(base, [0, 64, -64, 1024][i % 4]!, r.r11, 1);
    maker.add((a) => a.tilezero(tmm(i)), `tilezero tmm${i}`);
    maker.add((a) => a.tileloadd(tmm(i), m), `tileloadd tmm${i},${text(m)}`);
    maker.add((a) => a.tileloaddt1(tmm(i), m), `tileloaddt1 tmm${i},${text(m)}`);
    maker.add((a) => a.tilestored(m, tmm(i)), `tilestored ${text(m)},tmm${i}`);
    const [b, c] = [(i + 1) % 8, (i + 2) % 8];
    maker.add((a) => a.tdpbf16ps(tmm(i), tmm(b), tmm(c)), `tdpbf16ps tmm${i},tmm${b},tmm${c}`);
    maker.add((a) => a.ldtilecfg(mem(base, 8)), `ldtilecfg ${text(mem(base, 8))}`);
  }
  maker.add((a) => a.tilerelease(), "tilerelease");
  maker.add((a) => a.vzeroupper(), "vzeroupper");
  maker.add((a) => a.cpuid(), "cpuid");
  maker.add((a) => a.xgetbv(), "xgetbv");
  maker.add((a) => a.ud2(), "ud2");
  maker.add((a) => a.ret(), "ret");
}

/** About a thousand instructions, the same ones each time. */
export function encodingCases(): readonly EncodingCase[] {
  const maker = new CaseMaker();
  for (const op of VECTOR_OPS) for (let i = 0; i < 6; i++) maker.vector(op);
  integerCases(maker);
  tileCases(maker);
  return maker.cases;
}
