/**
 * @file What this processor can do, asked of the processor itself (CPUID, XGETBV) by emitted code.
 *
 * An instruction set counts only if the operating system saves its registers too, and AMX only if
 * the kernel granted this process the tile data. That is the architecture's own contract, so no
 * instruction is tried out in a child process: a child would cost more than all other preparations.
 *
 * `HADAL_CPU_FEATURES=avx512,avx512Bf16` (or `none`) hides what is not listed; it never adds.
 *
 * Source: SDM volume 1, sections 13.3, 14.3 and 15.2; volume 2, CPUID; Linux `arch_prctl(2)`.
 */
import { OperationalError } from "../../base/errors.ts";
import { X64 } from "../../codegen/x64/assembler.ts";
import { mem, r } from "../../codegen/x64/operands.ts";

/** Instruction sets that some kernel asks for. */
export interface CpuFeatures {
  /** AVX-512 F, BW, VL, DQ and BMI2. */
  readonly avx512: boolean;
  /** AVX512_BF16: `vdpbf16ps`. */
  readonly avx512Bf16: boolean;
  /** AVX512_VBMI. */
  readonly avx512Vbmi: boolean;
  /** AMX tiles with bf16 products, permitted to this process. */
  readonly amxBf16: boolean;
}

export const CPU_FEATURES = ["avx512", "avx512Bf16", "avx512Vbmi", "amxBf16"] as const;

/** The four registers that CPUID answers in. */
export interface CpuidAnswer {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** How the processor is asked; a test may answer in its place. */
export interface ProcessorQueries {
  cpuid(leaf: number, subleaf: number): CpuidAnswer;
  /** Low half of XCR0: register states saved by the operating system. Needs OSXSAVE. */
  xcr0(): number;
  /** Ask the operating system for AMX tile data; false if refused or never heard of. */
  requestTiles(): boolean;
}

/** `void f(int32_t out[4], int64_t leaf, int64_t subleaf)`: eax, ebx, ecx, edx of CPUID. */
export function emitCpuid(): Uint8Array {
  const a = new X64();
  a.push(r.rbx);
  a.mov(r.r8, r.rdx);
  a.mov(r.rax, r.rsi);
  a.mov(r.rcx, r.r8);
  a.cpuid();
  for (const [index, register] of [r.rax, r.rbx, r.rcx, r.rdx].entries()) {
    a.mov32(mem(r.rdi, 4 * index), register);
  }
  a.pop(r.rbx);
  a.ret();
  return a.code();
}

/** `void f(int32_t out[4], int64_t, int64_t)`: the low half of XCR0 in out[0]. */
export function emitXgetbv(): Uint8Array {
  const a = new X64();
  a.mov(r.rcx, 0);
  a.xgetbv();
  a.mov32(mem(r.rdi), r.rax);
  a.ret();
  return a.code();
}

const bit = (word: number, index: number): boolean => ((word >>> index) & 1) === 1;
const covers = (word: number, bits: number): boolean => (word & bits) === bits;

/** States xmm, ymm, mask registers, upper zmm halves, zmm16..31. */
const XCR0_AVX512 = 0xe6;
/** States tile configuration and tile data. */
const XCR0_AMX = 0x60000;

/** Leaf 7, ebx: BMI2, AVX-512 F, DQ, BW, VL. */
const AVX512_BITS = [8, 16, 17, 30, 31];

const NOTHING: CpuFeatures = {
  avx512: false,
  avx512Bf16: false,
  avx512Vbmi: false,
  amxBf16: false,
};

/** What the processor and the operating system together allow. */
export function detectFeatures(queries: ProcessorQueries): CpuFeatures {
  const highestLeaf = queries.cpuid(0, 0).eax >>> 0;
  const hasXgetbv = bit(queries.cpuid(1, 0).ecx, 27);
  if (highestLeaf < 7 || !hasXgetbv) return NOTHING;
  const leaf7 = queries.cpuid(7, 0);
  const states = queries.xcr0();
  const avx512 = covers(states, XCR0_AVX512) && AVX512_BITS.every((index) => bit(leaf7.ebx, index));
  if (!avx512) return NOTHING;
  const hasSubleaf1 = leaf7.eax >>> 0 >= 1;
  const hasAmx = covers(states, XCR0_AMX) && bit(leaf7.edx, 24) && bit(leaf7.edx, 22);
  return {
    avx512,
    avx512Bf16: hasSubleaf1 && bit(queries.cpuid(7, 1).eax, 5),
    avx512Vbmi: bit(leaf7.ecx, 1),
    amxBf16: hasAmx && queries.requestTiles(),
  };
}

/**
 * Keep only the features listed in `allowed` (the value of HADAL_CPU_FEATURES); undefined keeps
 * all.
 */
export function maskFeatures(features: CpuFeatures, allowed: string | undefined): CpuFeatures {
  if (allowed === undefined || allowed === "") return features;
  const names = allowed.split(",").map((name) => name.trim());
  const known: readonly string[] = [...CPU_FEATURES, "none"];
  const unknown = names.find((name) => !known.includes(name));
  if (unknown !== undefined) {
    throw new OperationalError(
      "device.features",
      `HADAL_CPU_FEATURES names ${unknown}; allowed are ${known.join(", ")}, separated by commas`,
    );
  }
  if (!names.includes("avx512")) return NOTHING;
  return {
    avx512: features.avx512,
    avx512Bf16: features.avx512Bf16 && names.includes("avx512Bf16"),
    avx512Vbmi: features.avx512Vbmi && names.includes("avx512Vbmi"),
    amxBf16: features.amxBf16 && names.includes("amxBf16"),
  };
}
