/**
 * @file Conformance cases of the row kernels: every width around a vector's edge, in place, with
 * NaN and infinity.
 */
import { toleranceFor } from "../../numerics/tolerance.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { accumulate, addRows, lerp, SUM_SLICES_MOST, sumSlices } from "../accumulate/contract.ts";
import { type ADAMW_VARIANTS, adamw, sumSquares } from "../adamw/contract.ts";
import { type CastDType, castRows } from "../cast-rows/contract.ts";
import { crossEntropy } from "../cross-entropy/contract.ts";
import { combineRows, gatherRows, scatterAddRows, scatterRows } from "../gather/contract.ts";
import { rmsNorm, rmsNormBackward } from "../rms-norm/contract.ts";
import { ROPE_ROWS_MOST, rope } from "../rope/contract.ts";
import { softmaxBackward, softmaxCausal } from "../softmax/contract.ts";
import { swiglu, swigluBackward } from "../swiglu/contract.ts";
import type { ConformanceCase, PreparedCase } from "./conformance.ts";
import type { TensorMaker } from "./tensor-maker.ts";

type Shape = readonly [rows: number, columns: number];

/**
 * Every width around a vector's edge. Narrow ones have many rows: errors are judged against the
 * largest result, and a handful of results may all be small by cancellation.
 */
const SHAPES: readonly Shape[] = [
  [40, 1],
  [41, 3],
  [42, 15],
  [43, 16],
  [40, 17],
  [1, 100],
  [130, 100],
  [70, 320],
  [0, 8],
];
/** For sums over a row: the only one of one row may happen to be small by cancellation. */
const SEVERAL_ROWS: readonly Shape[] = SHAPES.filter(([rows]) => rows !== 1);
/** For differences of a row's own numbers: with one column only rounding is left to compare. */
const SEVERAL_COLUMNS: readonly Shape[] = SEVERAL_ROWS.filter(([, columns]) => columns > 1);
const NARROW_OUTPUTS = ["f32", "bf16"] as const;

type Prepare = (make: TensorMaker, shape: Shape) => PreparedCase;

/** One case a shape, and one whose inputs hold NaN and infinities. */
function casesOf(
  kernel: string,
  dtype: "f32" | "bf16",
  prepare: Prepare,
  shapes = SHAPES,
): ConformanceCase[] {
  return shapes.map((shape) => ({
    kernel,
    title: `${shape[0]} rows of ${shape[1]}`,
    tolerance: toleranceFor("row", dtype, shape[1]),
    prepare: (make) => prepare(make, shape),
  }));
}

/** Mostly normal values, with NaN, infinities, zeros and extremes strewn in. */
function special(make: TensorMaker, dtype: "f32" | "bf16", shape: Shape): Tensor<"f32" | "bf16"> {
  const values = [Number.NaN, Infinity, -Infinity, 0, -0, 1e30, -1e30, 1e-30, 100, -100];
  return make.filled(dtype, shape, () => {
    const pick = make.random.below(40);
    return values[pick] ?? make.random.normal();
  });
}

const CAST_CASES: readonly ConformanceCase[] = ["f32.bf16", "bf16.f32", "f32.f32"].flatMap(
  (variant) => {
    const [from, to] = variant.split(".") as ["f32" | "bf16", CastDType];
    return SHAPES.map(
      (shape): ConformanceCase => ({
        kernel: `castRows/${variant}`,
        title: `${shape[0]} rows of ${shape[1]}, special values`,
        tolerance: toleranceFor("storage", "f32"),
        prepare(make): PreparedCase {
          const x = special(make, from, shape);
          const out = make.poisoned(to, shape);
          return { run: (device) => castRows(device, { x, out }), outputs: { out } };
        },
      }),
    );
  },
);

const NORM_CASES: readonly ConformanceCase[] = [
  ...NARROW_OUTPUTS.flatMap((dtype) =>
    casesOf(`rmsNorm/${dtype}`, dtype, (make, [rows, columns]) => {
      const x = make.normal("f32", [rows, columns]);
      const gain = make.normal("f32", [1, columns]);
      const out = make.poisoned(dtype, [rows, columns]);
      return {
        run: (device) => rmsNorm(device, { x, gain, epsilon: 1e-6, out }),
        outputs: { out },
      };
    }),
  ),
  ...[false, true].flatMap((adding) =>
    casesOf(
      `rmsNormBackward/f32${adding ? ".accumulate" : ""}`,
      "f32",
      (make, [rows, columns]) => {
        const x = make.normal("f32", [rows, columns]);
        const gain = make.normal("f32", [1, columns]);
        const dOut = make.normal("f32", [rows, columns]);
        const dX = adding
          ? make.normal("f32", [rows, columns])
          : make.poisoned("f32", [rows, columns]);
        const dGain = make.normal("f32", [1, columns]);
        const { arena } = make;
        const call = { x, gain, epsilon: 1e-6, dOut, dX, accumulate: adding, dGain, arena };
        return { run: (device) => rmsNormBackward(device, call), outputs: { dX, dGain } };
      },
      SEVERAL_COLUMNS,
    ),
  ),
];

const SWIGLU_CASES: readonly ConformanceCase[] = NARROW_OUTPUTS.flatMap((dtype) =>
  [false, true].flatMap((weighted) => {
    const variant = `${dtype}${weighted ? ".weighted" : ""}`;
    return [
      ...casesOf(`swiglu/${variant}`, dtype, (make, [rows, columns]) => {
        const gateUp = make.normal("f32", [rows, 2 * columns]);
        const weight = weighted ? { weight: make.normal("f32", [rows, 1]) } : {};
        const out = make.poisoned(dtype, [rows, columns]);
        return { run: (device) => swiglu(device, { gateUp, ...weight, out }), outputs: { out } };
      }),
      ...casesOf(
        `swigluBackward/${variant}`,
        dtype,
        (make, [rows, columns]) => {
          const gateUp = make.normal("f32", [rows, 2 * columns]);
          const dOut = make.normal("f32", [rows, columns]);
          const dGateUp = make.poisoned(dtype, [rows, 2 * columns]);
          const activation = make.poisoned(dtype, [rows, columns]);
          const results = { dGateUp, activation };
          const extra = weighted
            ? { weight: make.normal("f32", [rows, 1]), dWeight: make.poisoned("f32", [rows, 1]) }
            : undefined;
          return {
            run: (device) => swigluBackward(device, { gateUp, ...extra, dOut, ...results }),
            outputs: { ...results, ...(extra === undefined ? {} : { dWeight: extra.dWeight }) },
          };
        },
        weighted ? SEVERAL_ROWS : SHAPES,
      ),
    ];
  }),
);

const ROPE_CASES: readonly ConformanceCase[] = [false, true].flatMap((inverse) =>
  ([2, 16, 34, 64] as const).map((columns): ConformanceCase => {
    const rowsPerToken = { 2: 1, 16: ROPE_ROWS_MOST, 34: 3, 64: ROPE_ROWS_MOST + 1 }[columns];
    return {
      kernel: `rope/f32.${Math.min(rowsPerToken, ROPE_ROWS_MOST)}`,
      title: `${columns} columns, ${rowsPerToken} rows a token${inverse ? ", inverse" : ""}`,
      tolerance: toleranceFor("elementwise", "f32"),
      prepare(make): PreparedCase {
        const [tokens, positions] = [37, 50];
        const x = make.normal("f32", [tokens * rowsPerToken, columns]);
        const angle = (row: number, column: number): number => row / (1 + Math.floor(column / 2));
        const cosTable = make.filled("f32", [positions, columns], (r, c) => Math.cos(angle(r, c)));
        const sinTable = make.filled(
          "f32",
          [positions, columns],
          (r, c) => Math.sin(angle(r, c)) * (c % 2 === 0 ? -1 : 1),
        );
        const index = make.integers([1, tokens], 0, positions);
        return {
          run: (device) => rope(device, { x, positions: index, cosTable, sinTable, inverse }),
          outputs: { x },
        };
      },
    };
  }),
);

const SOFTMAX_CASES: readonly ConformanceCase[] = [
  ...casesOf("softmaxCausal/f32", "f32", (make, [rows, columns]) => {
    const x = make.filled("f32", [rows, columns], () => 20 * make.random.normal());
    const limits = make.integers([1, rows], 0, columns + 1);
    const out = make.poisoned("f32", [rows, columns]);
    return {
      run: (device) => softmaxCausal(device, { x, limits, scale: 0.37, out }),
      outputs: { out },
    };
  }),
  ...casesOf("softmaxCausal/f32", "f32", (make, [rows, columns]) => {
    const x = special(make, "f32", [rows, columns]) as Tensor<"f32">;
    const limits = make.integers([1, rows], 0, columns + 1);
    return {
      run: (device) => softmaxCausal(device, { x, limits, scale: 1, out: x }),
      outputs: { x },
    };
  }).map((testCase) => ({ ...testCase, title: `${testCase.title}, in place, special values` })),
  ...casesOf("softmaxBackward/f32", "f32", (make, [rows, columns]) => {
    const p = make.filled("f32", [rows, columns], () => make.random.uniform() / columns);
    const dP = make.normal("f32", [rows, columns]);
    return { run: (device) => softmaxBackward(device, { p, dP, scale: 0.25 }), outputs: { dP } };
  }),
];

const CROSS_ENTROPY_CASES: readonly ConformanceCase[] = [true, false]
  .flatMap((grad) =>
    [0, 1e-3].flatMap((zLoss) =>
      casesOf(
        `crossEntropy/f32.${grad ? "grad" : "loss"}`,
        "f32",
        (make, [rows, columns]) => {
          const logits = make.filled("f32", [rows, columns], () => 4 * make.random.normal());
          const targets = make.integers([1, rows], -1, columns);
          const loss = make.poisoned("f32", [1, rows]);
          const logSumExp = make.poisoned("f32", [1, rows]);
          const call = { logits, targets, gradScale: 0.5, zLoss, loss, logSumExp, grad };
          return {
            run: (device) => crossEntropy(device, call),
            outputs: { logits, loss, logSumExp },
          };
        },
        SEVERAL_COLUMNS,
      ),
    ),
  )
  .concat(
    casesOf(
      "crossEntropy/f32.bf16Grad",
      "bf16",
      (make, [rows, columns]) => {
        const logits = make.filled("f32", [rows, columns], () => 4 * make.random.normal());
        const targets = make.integers([1, rows], -1, columns);
        const [loss, logSumExp] = [
          make.poisoned("f32", [1, rows]),
          make.poisoned("f32", [1, rows]),
        ];
        const grad = make.poisoned("bf16", [rows, columns]);
        const call = { logits, targets, gradScale: 0.5, zLoss: 0.01, loss, logSumExp, grad };
        return { run: (device) => crossEntropy(device, call), outputs: { grad, loss, logSumExp } };
      },
      SEVERAL_COLUMNS,
    ),
  );

const SUM_CASES: readonly ConformanceCase[] = [
  ...NARROW_OUTPUTS.flatMap((dtype) =>
    casesOf(`accumulate/${dtype}`, "f32", (make, shape) => {
      const x = make.normal(dtype, shape);
      const out = make.normal("f32", shape);
      return { run: (device) => accumulate(device, { x, scale: -0.7, out }), outputs: { out } };
    }),
  ),
  ...casesOf("addRows/f32", "f32", (make, shape) => {
    const a = make.normal("f32", shape);
    const b = make.normal("f32", shape);
    const out = make.poisoned("f32", shape);
    return { run: (device) => addRows(device, { a, b, out }), outputs: { out } };
  }),
  ...[1, 3, SUM_SLICES_MOST].flatMap((count) =>
    casesOf(`sumSlices/f32.${count}`, "f32", (make, [rows, columns]) => {
      const x = make.normal("f32", [rows, count * columns]);
      const out = make.poisoned("f32", [rows, columns]);
      return { run: (device) => sumSlices(device, { x, out }), outputs: { out } };
    }),
  ),
  ...casesOf("lerp/f32", "f32", (make, shape) => {
    const x = make.normal("f32", shape);
    const out = make.normal("f32", shape);
    return { run: (device) => lerp(device, { x, weight: 0.1, out }), outputs: { out } };
  }),
];

const GATHER_CASES: readonly ConformanceCase[] = [
  ...["f32.f32", "f32.bf16", "bf16.f32", "bf16.bf16"].flatMap((variant) => {
    const [from, to] = variant.split(".") as ["f32" | "bf16", "f32" | "bf16"];
    return casesOf(`gatherRows/${variant}`, to, (make, [rows, columns]) => {
      const src = make.normal(from, [9, columns]);
      const index = make.integers([1, rows], 0, 9);
      const out = make.poisoned(to, [rows, columns]);
      return { run: (device) => gatherRows(device, { src, index, out }), outputs: { out } };
    });
  }),
  ...[1, 2, 4, 8].flatMap((numCombined) =>
    casesOf(`combineRows/f32.${numCombined}`, "f32", (make, [rows, columns]) => {
      const src = make.normal("f32", [11, columns]);
      const index = make.integers([rows, numCombined], 0, 11);
      const out = make.normal("f32", [rows, columns]);
      return { run: (device) => combineRows(device, { src, index, out }), outputs: { out } };
    }),
  ),
  ...[1, 4, 9].flatMap((numCombined) =>
    casesOf(`combineRows/f32.${numCombined}`, "f32", (make, [rows, columns]) => {
      const src = make.normal("f32", [11, columns]);
      const index = make.integers([rows, numCombined], 0, 11);
      const base = make.normal("f32", [rows, columns]);
      const out = make.poisoned("f32", [rows, columns]);
      const call = { src, index, base, out };
      return { run: (device) => combineRows(device, call), outputs: { out } };
    }).map((testCase) => ({ ...testCase, title: `${testCase.title}, onto another` })),
  ),
  ...(["f32", "bf16"] as const).flatMap((dtype) =>
    casesOf(`scatterRows/${dtype}.${dtype}`, dtype, (make, [rows, columns]) => {
      const x = make.normal(dtype, [rows, columns]);
      const places = Array.from({ length: rows + 5 }, (_, place) => place);
      make.random.shuffle(places);
      const draw = (_: number, row: number): number => places[row]!;
      const index = make.filled("i32", [1, rows], draw, { contiguous: true });
      const out = make.normal(dtype, [rows + 5, columns]);
      return { run: (device) => scatterRows(device, { x, index, out }), outputs: { out } };
    }),
  ),
  ...casesOf("scatterAddRows/f32", "f32", (make, [rows, columns]) => {
    const x = make.normal("f32", [rows, columns]);
    const index = make.integers([1, rows], 0, 7);
    const out = make.normal("f32", [7, columns]);
    return { run: (device) => scatterAddRows(device, { x, index, out }), outputs: { out } };
  }),
];

/**
 * Parameters are moved by the moments before these are rounded, so they are as precise beside bf16
 * ones. A moment next to the middle of two codes may fall to either.
 */
function adamwCase(
  variant: (typeof ADAMW_VARIANTS)[number],
  outputs: "parameter" | "moments",
  count: number,
): ConformanceCase {
  const dtype = variant === "f32" ? "f32" : "bf16";
  return {
    kernel: `adamw/${variant}`,
    title: `${count} parameters, ${outputs}`,
    // The step divides by a root that may be small: a few units more than a plain row kernel.
    tolerance: toleranceFor("row", outputs === "parameter" ? "f32" : dtype, 64),
    prepare(make: TensorMaker): PreparedCase {
      const shape = [1, count];
      const parameter = make.normal("f32", shape);
      const gradient = make.normal("f32", shape);
      const firstMoment = make.normal(dtype, shape);
      const secondMoment = make.filled(dtype, shape, () => make.random.uniform());
      const hyper = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1, step: 3 };
      const call = { parameter, gradient, firstMoment, secondMoment, ...hyper };
      const rounding = variant === "bf16.stochastic" ? { roundingSeed: 5 } : {};
      const step = { learningRate: 1e-2, gradientScale: 0.5, ...rounding };
      return {
        run: (device) => adamw(device, { ...call, ...step }),
        outputs: outputs === "parameter" ? { parameter } : { firstMoment, secondMoment },
      };
    },
  };
}

const ADAMW_CASES: readonly ConformanceCase[] = [40, 17, 1024, 2500].flatMap((count) => [
  ...(["f32", "bf16", "bf16.stochastic"] as const).flatMap((variant) => [
    adamwCase(variant, "parameter", count),
    adamwCase(variant, "moments", count),
  ]),
  {
    kernel: "sumSquares/f32",
    title: `${count} values`,
    tolerance: toleranceFor("row", "f32", 1024),
    prepare(make: TensorMaker): PreparedCase {
      const x = make.normal("f32", [1, count]);
      const out = make.poisoned("f32", [1, 1]);
      return {
        run(device): void {
          device.memory.f32[out.byteOffset / 4] = sumSquares(device, { x, arena: make.arena });
        },
        outputs: { out },
      };
    },
  },
]);

export const ROW_CASES: readonly ConformanceCase[] = [
  ...CAST_CASES,
  ...NORM_CASES,
  ...SWIGLU_CASES,
  ...ROPE_CASES,
  ...SOFTMAX_CASES,
  ...CROSS_ENTROPY_CASES,
  ...SUM_CASES,
  ...GATHER_CASES,
  ...ADAMW_CASES,
];
