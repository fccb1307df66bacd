/**
 * @file `quantization_config` of a config.json: what the weights beside it are stored in.
 *
 *     fp8                 released DeepSeek-V3: E4M3 with scales of 128×128 blocks
 *     compressed-tensors  weight-only integers, format pack-quantized, strategy group
 *
 * Written for integers: one group of layers for `Linear`, and where the head has more bits one for
 * `re:.*lm_head`; what stays bf16 is named in `ignore`. Read is what was written, and what other
 * programs write of the same form; quantised activations and caches are refused. Source: the
 * configurations of the compressed-tensors library.
 */
import { OperationalError } from "../base/errors.ts";
import {
  GROUP_SIZES,
  type GroupRule,
  type GroupSize,
  INTEGER_BITS,
  type IntegerBits,
} from "../numerics/integer-groups.ts";
import { FieldReader } from "./field-reader.ts";
import type { WeightFormat } from "./weight-format.ts";

const HEAD_TARGET = "re:.*lm_head";

/** How the weights of a checkpoint are stored; "bf16" stands for every plain float. */
export function storedWeightFormat(configJson: unknown): WeightFormat {
  const all = new FieldReader("config.json", configJson);
  const fields = all.nested("quantization_config");
  return fields === null ? "bf16" : readQuantization(fields);
}

/** Read and check the nested object. */
export function readQuantization(fields: FieldReader): WeightFormat {
  const method = fields.choice("quant_method", ["fp8", "compressed-tensors"], "fp8");
  if (method === "fp8") {
    readFp8(fields);
    return "fp8";
  }
  fields.choice("format", ["pack-quantized"]);
  fields.choice("quantization_status", ["compressed"], "compressed");
  fields.fixed("kv_cache_scheme", null);
  fields.skip(["ignore", "global_compression_ratio", "version", "sparsity_config"]);
  const groups = fields.nested("config_groups");
  const rules = groups === null ? [] : groups.names().map((name) => readGroup(groups, name));
  fields.refuseRest();
  // The head has a group of its own where it has more bits.
  const main = rules.find(({ isHead }) => !isHead)?.rule;
  if (main !== undefined) return main;
  throw new OperationalError(
    "config.field",
    "config.json: quantization_config: config_groups must hold a group for Linear layers",
  );
}

function readFp8(fields: FieldReader): void {
  fields.fixed("fmt", "e4m3");
  fields.fixed("activation_scheme", "dynamic");
  fields.choice("scale_fmt", ["float", "ue8m0"], "float");
  const [rows, columns] = fields.integers("weight_block_size");
  if (rows !== 128 || columns !== 128) {
    throw new OperationalError(
      "config.field",
      `config.json: weight_block_size ([${rows}, ${columns}]) must be [128, 128]`,
    );
  }
  fields.refuseRest();
}

function readGroup(
  groups: FieldReader,
  name: string,
): { readonly rule: GroupRule; readonly isHead: boolean } {
  const group = groups.nested(name);
  const weights = group?.nested("weights") ?? null;
  if (group === null || weights === null) {
    throw new OperationalError(
      "config.field",
      `config.json: quantization_config: config_groups.${name} has no weights`,
    );
  }
  const targets = group.texts("targets");
  for (const field of ["input_activations", "output_activations"]) group.fixed(field, null);
  group.fixed("format", "pack-quantized");
  group.refuseRest();
  weights.fixed("type", "int");
  weights.choice("strategy", ["group"]);
  weights.fixed("dynamic", false);
  weights.fixed("actorder", null);
  weights.fixed("block_structure", null);
  weights.skip(["observer", "observer_kwargs", "scale_dtype", "zp_dtype"]);
  const bits = weights.integer("num_bits");
  const groupSize = weights.integer("group_size");
  const symmetric = weights.boolean("symmetric", true);
  weights.refuseRest();
  requireOneOf(`${name}: num_bits`, bits, INTEGER_BITS);
  requireOneOf(`${name}: group_size`, groupSize, GROUP_SIZES);
  return {
    rule: { bits: bits as IntegerBits, groupSize: groupSize as GroupSize, asymmetric: !symmetric },
    isHead: targets.every((target) => target.endsWith("lm_head")),
  };
}

function requireOneOf(subject: string, value: number, allowed: readonly number[]): void {
  if (allowed.includes(value)) return;
  throw new OperationalError(
    "config.field",
    `config.json: quantization_config: ${subject} (${value}) must be ${allowed.join(" or ")}`,
  );
}

/** The object for integer weights; `ignore` lists the modules that stay bf16. */
export function writeQuantization(
  rule: GroupRule,
  { hasHead, ignore }: { readonly hasHead: boolean; readonly ignore: readonly string[] },
): Record<string, unknown> {
  const head =
    hasHead && rule.bits !== 8 ? { group_1: groupOf([HEAD_TARGET], { ...rule, bits: 8 }) } : {};
  return {
    quant_method: "compressed-tensors",
    format: "pack-quantized",
    quantization_status: "compressed",
    config_groups: { group_0: groupOf(["Linear"], rule), ...head },
    ignore,
    kv_cache_scheme: null,
  };
}

function groupOf(targets: readonly string[], { bits, groupSize, asymmetric }: GroupRule): unknown {
  return {
    targets,
    weights: {
      num_bits: bits,
      type: "int",
      symmetric: !asymmetric,
      strategy: "group",
      group_size: groupSize,
      dynamic: false,
    },
    input_activations: null,
    output_activations: null,
  };
}
