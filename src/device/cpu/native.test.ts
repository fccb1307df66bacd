/** @file Native code: what it runs, where it is refused, and what a missing check would cost. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { OperationalError } from "../../base/errors.ts";
import { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, KERNEL_ARGUMENTS, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { mem, r, tmm } from "../../codegen/x64/operands.ts";
import { type CpuidAnswer, detectFeatures, maskFeatures } from "./features.ts";
import { createNativeRuntime, type NativeHost } from "./native.ts";
import { openNativeLibrary } from "./native-library.ts";

const { runtime, reason } = createNativeRuntime();
const needsNative = runtime === null ? { skip: reason } : {};
const NATIVE_URL = new URL("./native.ts", import.meta.url).href;

const host = (changes: Partial<NativeHost>): NativeHost => ({
  platform: "linux",
  architecture: "x64",
  environment: {},
  openLibrary: openNativeLibrary,
  ...changes,
});

/** Run a script in its own process; `native` is the module under test. */
function runChild(
  script: string,
  environment: Record<string, string> = {},
): {
  signal: string | null;
  output: string;
} {
  const child = spawnSync(
    process.execPath,
    ["--input-type=module", "-e", `const native = await import("${NATIVE_URL}");\n${script}`],
    { env: { ...process.env, ...environment }, encoding: "utf8" },
  );
  return { signal: child.signal, output: child.stdout + child.stderr };
}

const toHex = (code: Uint8Array): string => Buffer.from(code).toString("hex");

describe("native code", () => {
  it("runs what it loads, with the four arguments of a kernel", needsNative, () => {
    const code = emitKernel({
      numLocals: 1,
      body: (a, local) => {
        const { slots, firstTask, endTask, memoryBase } = KERNEL_ARGUMENTS;
        loadSlot(a, r.rax, 0);
        a.mov(local(0), r.rax);
        a.add(r.rax, firstTask);
        a.add(r.rax, endTask);
        a.add(r.rax, mem(memoryBase));
        a.add(r.rax, local(0));
        a.mov(mem(slots, 8), r.rax);
      },
    });
    const slots = new Float64Array([1000, 0]);
    const memory = new BigInt64Array([5n]);
    const address = (view: ArrayBufferView): number =>
      runtime?.addressOf(new Uint8Array(view.buffer)) ?? 0;
    runtime?.load(code).call(address(slots), 20, 300, address(memory));
    assert.equal(new BigInt64Array(slots.buffer)[1], 2325n);
  });

  it("has no page that is writable and executable at once", needsNative, (t) => {
    if (process.platform !== "linux") return t.skip("only Linux shows a process its mappings");
    const a = new X64();
    a.ret();
    const address = runtime?.load(a.code()).address ?? 0;
    const maps = readFileSync("/proc/self/maps", "utf8").trim().split("\n");
    const mine = maps.find((line) => {
      const [from = "", to = ""] = (line.split(" ")[0] ?? "").split("-");
      return Number.parseInt(from, 16) <= address && address < Number.parseInt(to, 16);
    });
    assert.match(mine ?? "", /^\S+ r-xp /);
  });

  it("works in a worker thread", needsNative, async () => {
    const script = `import("${NATIVE_URL}").then((native) => {
      require("node:worker_threads").parentPort.postMessage(native.createNativeRuntime().reason);
    });`;
    const worker = new Worker(script, { eval: true });
    const answer = await new Promise((resolve, reject) => {
      worker.once("message", resolve).once("error", reject);
    });
    assert.equal(answer, "");
    await worker.terminate();
  });

  it("is refused, with the reason, where it is off or impossible", () => {
    const reasonOf = (changes: Partial<NativeHost>): string => {
      const attempt = createNativeRuntime(host(changes));
      assert.equal(attempt.runtime, null);
      return attempt.reason;
    };
    assert.match(reasonOf({ environment: { HADAL_NATIVE: "0" } }), /HADAL_NATIVE=0/);
    assert.match(reasonOf({ architecture: "arm64" }), /arm64/);
    assert.match(reasonOf({ platform: "win32" }), /win32/);
    const openLibrary = (): never => {
      throw new Error("Cannot find the native Koffi module\nand more");
    };
    assert.match(reasonOf({ openLibrary }), /koffi.*Cannot find the native Koffi module$/);
  });

  it("is refused where pages may not become executable", needsNative, () => {
    const openLibrary: NativeHost["openLibrary"] = (platform) => ({
      ...openNativeLibrary(platform),
      mapExecutable: () => {
        throw new OperationalError("device.native", "execution is forbidden");
      },
    });
    const attempt = createNativeRuntime(host({ openLibrary }));
    assert.deepEqual(attempt, { runtime: null, reason: "execution is forbidden" });
  });

  it(
    "dies of an instruction that the processor lacks, and a hidden feature is never used",
    needsNative,
    () => {
      const illegal = new X64();
      illegal.ud2();
      const script = `
      const { runtime, reason } = native.createNativeRuntime();
      console.log(runtime === null ? reason : JSON.stringify(runtime.features));
      if (runtime) runtime.load(Buffer.from("${toHex(illegal.code())}", "hex")).call(0, 0, 0, 0);`;
      // The control: without the check of features, this is what would happen.
      assert.equal(runChild(script).signal, "SIGILL");
      const masked = runChild(script, { HADAL_CPU_FEATURES: "none" });
      assert.equal(masked.signal, null, masked.output);
      assert.match(masked.output, /no AVX-512; HADAL_CPU_FEATURES=none hides it/);
    },
  );

  it("does not claim tiles where using one is fatal", needsNative, () => {
    const tiles = new X64();
    tiles.tilezero(tmm(0));
    tiles.ret();
    const script = `
      const { runtime } = native.createNativeRuntime();
      if (runtime.features.amxBf16) process.exit(0);
      runtime.load(Buffer.from("${toHex(tiles.code())}", "hex")).call(0, 0, 0, 0);`;
    const { signal } = runChild(script);
    // With AMX the child leaves before (an unconfigured tile would be fatal there too).
    assert.equal(signal, runtime?.features.amxBf16 ? null : "SIGILL");
  });
});

describe("the processor's features", () => {
  const bits = (...indices: readonly number[]): number =>
    indices.reduce((word, index) => word | (1 << index), 0);
  const none: CpuidAnswer = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  /** A processor with AVX-512, bf16 and AMX, changed as a test likes. */
  const processor = (changes: {
    maxLeaf?: number;
    leaf1?: number;
    leaf7?: Partial<CpuidAnswer>;
    xcr0?: number;
    grantsTiles?: boolean;
  }): ReturnType<typeof detectFeatures> => {
    const leaf7 = { eax: 1, ebx: bits(8, 16, 17, 30, 31), ecx: bits(1), edx: bits(22, 24) };
    return detectFeatures({
      cpuid: (leaf, subleaf) => {
        if (leaf === 0) return { ...none, eax: changes.maxLeaf ?? 7 };
        if (leaf === 1) return { ...none, ecx: changes.leaf1 ?? bits(27) };
        if (subleaf === 1) return { ...none, eax: bits(5) };
        return { ...leaf7, ...changes.leaf7 };
      },
      xcr0: () => changes.xcr0 ?? 0x600e7,
      requestTiles: () => changes.grantsTiles ?? true,
    });
  };
  const all = { avx512: true, avx512Bf16: true, avx512Vbmi: true, amxBf16: true };
  const nothing = { avx512: false, avx512Bf16: false, avx512Vbmi: false, amxBf16: false };

  it("count only with the operating system's support", () => {
    assert.deepEqual(processor({}), all);
    assert.deepEqual(processor({ maxLeaf: 6 }), nothing);
    assert.deepEqual(processor({ leaf1: 0 }), nothing, "no OSXSAVE");
    assert.deepEqual(processor({ xcr0: 0x7 }), nothing, "upper halves are not saved");
    assert.deepEqual(processor({ xcr0: 0xe7 }), { ...all, amxBf16: false });
    assert.deepEqual(processor({ grantsTiles: false }), { ...all, amxBf16: false });
    assert.deepEqual(processor({ leaf7: { ebx: bits(16, 17, 30, 31) } }), nothing, "no BMI2");
    assert.deepEqual(processor({ leaf7: { eax: 0 } }), { ...all, avx512Bf16: false });
  });

  it("can be hidden and not invented", () => {
    assert.deepEqual(maskFeatures(all, undefined), all);
    assert.deepEqual(maskFeatures(all, "none"), nothing);
    assert.deepEqual(maskFeatures(all, "amxBf16"), nothing, "tiles need AVX-512 beside them");
    assert.deepEqual(maskFeatures(nothing, "avx512, amxBf16"), nothing);
    assert.deepEqual(maskFeatures(all, "avx512, avx512Bf16"), {
      ...all,
      avx512Vbmi: false,
      amxBf16: false,
    });
    assert.throws(() => maskFeatures(all, "avx2"), /HADAL_CPU_FEATURES names avx2; allowed are/);
  });
});
