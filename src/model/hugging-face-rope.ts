/**
 * @file The RoPE fields of config.json: `rope_theta` with `rope_scaling`, or the newer
 * `rope_parameters` with both.
 *
 * Only YaRN (or nothing) is supported. Defaults of left-out fields are those of the released
 * DeepSeek code.
 */
import type { ModelConfig, RopeScaling } from "./config.ts";
import type { FieldReader } from "./field-reader.ts";

const THETA = 10000;

export function readRope(fields: FieldReader): Pick<ModelConfig, "ropeTheta" | "ropeScaling"> {
  const parameters = fields.nested("rope_parameters");
  if (parameters !== null) {
    const ropeTheta = parameters.number("rope_theta", THETA);
    fields.fixed("rope_theta", ropeTheta);
    fields.fixed("rope_scaling", null);
    return { ropeTheta, ropeScaling: readScaling(parameters) };
  }
  const scaling = fields.nested("rope_scaling");
  return {
    ropeTheta: fields.number("rope_theta", THETA),
    ropeScaling: scaling === null ? null : readScaling(scaling),
  };
}

function readScaling(fields: FieldReader): RopeScaling | null {
  const kinds = ["yarn", "default"] as const;
  const type = fields.choice("rope_type", kinds, fields.choice("type", kinds, "default"));
  if (type === "default") {
    fields.refuseRest();
    return null;
  }
  const scaling: RopeScaling = {
    type: "yarn",
    factor: fields.number("factor"),
    betaFast: fields.number("beta_fast", 32),
    betaSlow: fields.number("beta_slow", 1),
    mscale: fields.number("mscale", 1),
    mscaleAllDim: fields.number("mscale_all_dim", 0),
    originalMaxPositionEmbeddings: fields.integer("original_max_position_embeddings", 4096),
  };
  fields.refuseRest();
  return scaling;
}

export function writeRopeScaling(scaling: RopeScaling | null): Record<string, unknown> | null {
  if (scaling === null) return null;
  return {
    type: "yarn",
    factor: scaling.factor,
    beta_fast: scaling.betaFast,
    beta_slow: scaling.betaSlow,
    mscale: scaling.mscale,
    mscale_all_dim: scaling.mscaleAllDim,
    original_max_position_embeddings: scaling.originalMaxPositionEmbeddings,
  };
}
