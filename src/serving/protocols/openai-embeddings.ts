/**
 * @file Embeddings: the mean of the final hidden states over a text's tokens, scaled to length 1.
 *
 * The model was trained to predict text, not to compare it; these vectors are what it has. OpenAI's
 * client asks for base64 by itself: little-endian f32. Fewer dimensions cannot be asked for.
 */

import { tenantOf } from "../chat-request.ts";
import { refuseField } from "../failure.ts";
import { Fields } from "../fields.ts";
import type { ServedModel } from "../models/registry.ts";
import type { Handler } from "../service.ts";
import { readUser } from "./openai-chat.ts";
import { readTokens } from "./openai-completions.ts";

const INPUTS_MAX = 256;

export const embeddings: Handler = async (exchange, service) => {
  const fields = new Fields(await exchange.body());
  const model = service.models.find(fields.requiredText("model"));
  const inputs = readInputs(fields, model);
  const format = fields.choice("encoding_format", ["float", "base64"]) ?? "float";
  const { hiddenDim } = model.engine.description;
  fields.neutral("dimensions", [hiddenDim], `the model's vectors have ${hiddenDim}`);
  const tenant = tenantOf(exchange.caller, readUser(fields));
  fields.end();
  const vectors = await Promise.all(
    inputs.map((input) => model.engine.embed(input, tenant, exchange.signal)),
  );
  const tokens = inputs.reduce((sum, input) => sum + input.length, 0);
  exchange.json(200, {
    object: "list",
    model: model.id,
    data: vectors.map((vector, index) => {
      const unit = normalised(vector);
      const embedding = format === "base64" ? base64(unit) : [...unit];
      return { object: "embedding", index, embedding };
    }),
    usage: { prompt_tokens: tokens, total_tokens: tokens },
  });
};

function readInputs(fields: Fields, { engine }: ServedModel): readonly Int32Array[] {
  const value = fields.raw("input");
  if (value === undefined) refuseField("input", "is missing");
  const isOne = typeof value === "string" || (Array.isArray(value) && typeof value[0] === "number");
  const list = isOne ? [value] : fields.list("input", INPUTS_MAX)!;
  if (list.length === 0) refuseField("input", "is an empty list");
  const { tokenizer, description } = engine;
  return list.map((one, index) => {
    const tokens =
      typeof one === "string"
        ? Int32Array.from([tokenizer.bosId, ...tokenizer.encode(one)])
        : readTokens(one, `input[${index}]`, description.vocabSize);
    if (tokens.length <= description.contextTokens) return tokens;
    const most = `the context takes ${description.contextTokens}`;
    return refuseField(`input[${index}]`, `has ${tokens.length} tokens; ${most}`);
  });
}

function normalised(vector: Float32Array): Float32Array {
  const length = Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
  return length === 0 ? vector : vector.map((value) => value / length);
}

function base64(vector: Float32Array): string {
  const bytes = Buffer.alloc(vector.length * 4);
  for (const [index, value] of vector.entries()) bytes.writeFloatLE(value, index * 4);
  return bytes.toString("base64");
}
