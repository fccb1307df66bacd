/**
 * @file The hash of a model: over the numbers themselves, so that what was cached for one model is
 * never taken for another.
 */
import { createHash } from "node:crypto";
import type { Model } from "../../model/model.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { viewSpan } from "../../tensor/view.ts";

/** Of a model, or of what a rank holds of one; 64 hexadecimal digits. */
export function hashOf({
  config,
  parameters,
  gateBiases,
}: Pick<Model, "config" | "parameters" | "gateBiases">): string {
  const hash = createHash("sha256").update(JSON.stringify(config));
  const add = (tensor: Tensor): void => {
    const { buffer, byteOffset, byteLength } = viewSpan(tensor);
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  };
  for (const { stored } of parameters.list) stored.forEach(add);
  for (const { bias } of gateBiases) add(bias);
  return hash.digest("hex");
}
