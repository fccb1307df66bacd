/**
 * @file The block core of matrix products in WebAssembly: f32, and bf16 widened while it is packed.
 *
 * Blocking: the product is cut along K first (256 at a time: an output is the sum of the blocks'
 * sums, in order), then into blocks whose panels stay in the caches. The packed panels and the
 * tiles of a ragged edge lie in `scratch`. Which rows and columns share a block changes no bit of a
 * result.
 */
import { assert } from "../../base/errors.ts";
import { hasRelaxedSimd, hasSharedSimd } from "../../codegen/wasm/features.ts";
import { instantiate } from "../../codegen/wasm/module.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import type { BlockMultiplier, Transposition } from "./block-multiplier.ts";
import type { MatmulDType } from "./contract.ts";
import {
  assembleMatmulCore,
  PANEL_COLUMNS,
  PANEL_ROWS,
  type WasmCoreExports,
  type WasmInputDType,
} from "./wasm-core.ts";

/** K of a block: a panel of A and one of B then fill less than half of a 32 KiB cache. */
const K_BLOCK = 256;
/** Rows and columns of a block: its panels fit a second-level cache of 1 MiB together. */
const ROW_BLOCK = 32 * PANEL_ROWS;
const COLUMN_BLOCK = 64 * PANEL_COLUMNS;
const A_BYTES = ROW_BLOCK * K_BLOCK * 4;
const B_BYTES = COLUMN_BLOCK * K_BLOCK * 4;
const EDGE_BYTES = ROW_BLOCK * PANEL_COLUMNS * 4;

/** null if WebAssembly can multiply this here; otherwise the reason. */
export function wasmMultiplierRefusal(
  _transposition: Transposition,
  dtype: MatmulDType,
  _context: ThreadContext,
): string | null {
  if (dtype === "f64") return "f64 runs on the reference alone";
  return hasSharedSimd() ? null : "WebAssembly here has no SIMD on shared memory";
}

export function createWasmMultiplier(
  transposition: Transposition,
  dtype: WasmInputDType,
  context: ThreadContext,
  scratch: Span,
): BlockMultiplier {
  const needed = A_BYTES + B_BYTES + EDGE_BYTES;
  assert(
    scratch.byteLength >= needed,
    `matmul needs ${needed} bytes of scratch; there are ${scratch.byteLength}`,
  );
  const bytes = assembleMatmulCore({ dtype, relaxedSimd: hasRelaxedSimd() });
  const { memory } = context;
  const core: WasmCoreExports = instantiate<keyof WasmCoreExports>(bytes, memory.wasm);
  const inputBytes = dtype === "f32" ? 4 : 2;
  const aPanels = scratch.byteOffset;
  const bPanels = aPanels + A_BYTES;
  const edge = bPanels + B_BYTES;
  const packA = transposition === "tn" ? core.packColumnsA : core.packRowsA;
  const packB = transposition === "nt" ? core.packRowsB : core.packColumnsB;
  const { multiply, storeEdge } = core;
  // Elements from one row (column) of the output, and from one k, to the next in each operand.
  const aAlongK = transposition !== "tn";
  const bAlongK = transposition === "nt";
  return (aOffset, aStride, bOffset, bStride, outOffset, outStride, m, n, k, accumulate) => {
    const [aStrideBytes, bStrideBytes] = [aStride * inputBytes, bStride * inputBytes];
    const [aPerRow, aPerK] = aAlongK ? [aStrideBytes, inputBytes] : [inputBytes, aStrideBytes];
    const [bPerColumn, bPerK] = bAlongK ? [bStrideBytes, inputBytes] : [inputBytes, bStrideBytes];
    const outStrideBytes = outStride * 4;
    if (k === 0 && !accumulate) fillZeros(context, outOffset, outStrideBytes, m, n);
    for (let depth = 0; depth < k; depth += K_BLOCK) {
      const depthBlock = Math.min(K_BLOCK, k - depth);
      const adds = accumulate || depth > 0 ? 1 : 0;
      for (let column = 0; column < n; column += COLUMN_BLOCK) {
        const columns = Math.min(COLUMN_BLOCK, n - column);
        const whole = columns - (columns % PANEL_COLUMNS);
        const b = bOffset + column * bPerColumn + depth * bPerK;
        packB(b, bStrideBytes, bPanels, columns, depthBlock);
        for (let row = 0; row < m; row += ROW_BLOCK) {
          const rows = Math.min(ROW_BLOCK, m - row);
          const a = aOffset + row * aPerRow + depth * aPerK;
          packA(a, aStrideBytes, aPanels, rows, depthBlock);
          const out = outOffset + row * outStrideBytes + column * 4;
          multiply(aPanels, bPanels, out, outStrideBytes, rows, whole, depthBlock, adds);
          if (whole === columns) continue;
          const lastPanel = bPanels + whole * depthBlock * 4;
          multiply(aPanels, lastPanel, edge, PANEL_COLUMNS * 4, rows, PANEL_COLUMNS, depthBlock, 0);
          storeEdge(edge, out + whole * 4, outStrideBytes, rows, columns - whole, adds);
        }
      }
    }
  };
}

function fillZeros(
  { memory }: ThreadContext,
  byteOffset: number,
  strideBytes: number,
  rows: number,
  columns: number,
): void {
  for (let row = 0; row < rows; row++) {
    const first = (byteOffset + row * strideBytes) / 4;
    memory.f32.fill(0, first, first + columns);
  }
}
