/**
 * @file The frequencies of RoPE, stretched by YaRN for long contexts, and the temperatures that go
 * with it.
 *
 *     f_i = θ^(−2i/R)                                   i < R/2
 *     dim(r) = R · ln(L / 2πr) / (2 ln θ)               where r turns fit into the old context
 *     ramp_i = clamp((i − low) / (high − low), 0, 1)
 *     low = ⌊dim(betaFast)⌋,  high = ⌈dim(betaSlow)⌉
 *     frequency_i = f_i · (1 − ramp_i) + f_i / factor · ramp_i
 *     m(s) = 0.1 · s · ln(factor) + 1
 *     attention scale = (N + R)^(−1/2) · m(mscaleAllDim)²
 *     cos and sin are multiplied by m(mscale) / m(mscaleAllDim)
 *
 *   R RoPE columns of a head, N its other columns, L the context length that the model was trained
 *   with before
 *
 * Applied whenever the configuration has it, at every length. Source: YaRN paper §3; the released
 * DeepSeek-V2 and V3 configurations, whose numbers the test repeats.
 */
import { divExact } from "../base/integers.ts";
import type { ModelConfig, RopeScaling } from "./config.ts";

/** Radians a position advances, for each pair of columns. */
export function ropeFrequencies(
  config: Pick<ModelConfig, "qkRopeHeadDim" | "ropeTheta" | "ropeScaling">,
): Float64Array {
  const { qkRopeHeadDim, ropeTheta, ropeScaling } = config;
  const plain = Float64Array.from(
    { length: divExact(qkRopeHeadDim, 2) },
    (_, pair) => ropeTheta ** ((-2 * pair) / qkRopeHeadDim),
  );
  if (ropeScaling === null) return plain;
  const { low, high } = correctionRange(qkRopeHeadDim, ropeTheta, ropeScaling);
  return plain.map((frequency, pair) => {
    const ramp = Math.min(1, Math.max(0, (pair - low) / (high - low)));
    return frequency * (1 - ramp) + (frequency / ropeScaling.factor) * ramp;
  });
}

/** The pairs between which the stretching fades in. */
export function correctionRange(
  ropeDim: number,
  theta: number,
  scaling: RopeScaling,
): { readonly low: number; readonly high: number } {
  const dimensionOf = (turns: number): number =>
    (ropeDim * Math.log(scaling.originalMaxPositionEmbeddings / (2 * Math.PI * turns))) /
    (2 * Math.log(theta));
  const low = Math.max(0, Math.floor(dimensionOf(scaling.betaFast)));
  const high = Math.min(ropeDim - 1, Math.ceil(dimensionOf(scaling.betaSlow)));
  // Equal ends would divide by zero; released code widens them by the same hair.
  return { low, high: high === low ? high + 0.001 : high };
}

/** m(scale): how much attention is sharpened at this factor. */
export function yarnTemperature(factor: number, scale: number): number {
  return factor <= 1 ? 1 : 0.1 * scale * Math.log(factor) + 1;
}

/** What the scores are multiplied with before the softmax. */
export function attentionScale(
  config: Pick<ModelConfig, "qkNopeHeadDim" | "qkRopeHeadDim" | "ropeScaling">,
): number {
  const unscaled = (config.qkNopeHeadDim + config.qkRopeHeadDim) ** -0.5;
  if (config.ropeScaling === null) return unscaled;
  const { factor, mscaleAllDim } = config.ropeScaling;
  return unscaled * yarnTemperature(factor, mscaleAllDim) ** 2;
}

/** What cos and sin are multiplied with; 1 where both mscale fields agree. */
export function rotaryMultiplier(scaling: RopeScaling | null): number {
  if (scaling === null) return 1;
  const { factor, mscale, mscaleAllDim } = scaling;
  return yarnTemperature(factor, mscale) / yarnTemperature(factor, mscaleAllDim);
}
