/**
 * @file What the weights of a checkpoint are written as: config.json's fields and the tensors.
 *
 *     f32, bf16          plain; routing biases are F32 in every form
 *     fp8, fp8-ue8m0     V3's: E4M3 codes, `weight_scale_inv` for each 128×128 block
 *     integers           `pack-quantized` of compressed-tensors (checkpoint/packed-integers.ts), of
 *                        the weights that weight-format.ts codes; the rest BF16
 */
import { assert, defined } from "../../base/errors.ts";
import { encodeFloats } from "../../checkpoint/float-codec.ts";
import { fp8WeightSources } from "../../checkpoint/fp8-weights.ts";
import { packedWeightSources } from "../../checkpoint/packed-integers.ts";
import type { TensorSource } from "../../checkpoint/tensors.ts";
import type { ModelConfig } from "../../model/config.ts";
import { type HuggingFaceTensor, huggingFaceTensors } from "../../model/names.ts";
import { declareParameters } from "../../model/parameter-declarations.ts";
import { writeQuantization } from "../../model/quantization-config.ts";
import { type ModelState, viewAt } from "../../model/tensor-source.ts";
import { integerRuleOf } from "../../model/weight-format.ts";
import type { GroupRule } from "../../numerics/integer-groups.ts";
import type { CheckpointDtype } from "../settings.ts";

export type StoredForm = CheckpointDtype | GroupRule;

/** The fields of config.json that say how weights are stored. */
export function storedFields(config: ModelConfig, form: StoredForm): Record<string, unknown> {
  if (form === "f32") return { torch_dtype: "float32" };
  if (form === "bf16") return { torch_dtype: "bfloat16" };
  if (typeof form === "object") {
    const hasHead = !config.tieWordEmbeddings;
    const quantization = writeQuantization(form, { hasHead, ignore: plainModules(config, form) });
    return { torch_dtype: "bfloat16", quantization_config: quantization };
  }
  return {
    torch_dtype: "bfloat16",
    quantization_config: {
      activation_scheme: "dynamic",
      fmt: "e4m3",
      quant_method: "fp8",
      weight_block_size: [128, 128],
      ...(form === "fp8-ue8m0" ? { scale_fmt: "ue8m0" } : {}),
    },
  };
}

/** Every tensor of the checkpoint; values are asked for one tensor at a time. */
export function storedSources(
  config: ModelConfig,
  state: ModelState,
  form: StoredForm,
): readonly TensorSource[] {
  const written = huggingFaceTensors(config).filter(({ presence }) => presence !== "tolerated");
  const rules = typeof form === "object" ? integerRules(config, form) : null;
  return written.flatMap((tensor): readonly TensorSource[] => {
    const { name, shape } = tensor;
    const values = (): Float32Array => viewAt(state, tensor.place);
    const rule = rules?.(tensor) ?? null;
    if (rule !== null) return packedWeightSources(name, matrixOf(tensor), values, rule);
    if ((form === "fp8" || form === "fp8-ue8m0") && tensor.isQuantisable) {
      return fp8WeightSources(name, matrixOf(tensor), values, form === "fp8-ue8m0");
    }
    const dtype = tensor.isFloat32 || form === "f32" ? "F32" : "BF16";
    return [{ name, dtype, shape, data: () => encodeFloats(dtype, values()) }];
  });
}

function matrixOf({ name, shape }: HuggingFaceTensor): { rows: number; columns: number } {
  const [rows, columns] = shape;
  assert(rows !== undefined && columns !== undefined, `${name} is a matrix`);
  return { rows, columns };
}

/** Which integers a tensor is stored in; null where it stays plain. */
function integerRules(
  config: ModelConfig,
  form: GroupRule,
): (tensor: HuggingFaceTensor) => GroupRule | null {
  const roles = new Map(declareParameters(config).map(({ name, role }) => [name, role]));
  return ({ place }) => {
    if (place.kind !== "rows") return null;
    const role = defined(roles.get(place.parameter), `the role of ${place.parameter}`);
    return integerRuleOf({ name: place.parameter, role }, form);
  };
}

/** Modules with a matrix that stays plain, by the names that other programs give them. */
function plainModules(config: ModelConfig, form: GroupRule): string[] {
  const ruleOf = integerRules(config, form);
  return huggingFaceTensors(config)
    .filter((tensor) => tensor.shape.length === 2 && ruleOf(tensor) === null)
    .map(({ name }) => name.replace(/\.weight$/, ""));
}
