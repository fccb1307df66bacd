/** @file For those who run the server: alive, ready, metrics; and the tokens of a text. */
import { OperationalError } from "../../base/errors.ts";
import type { Engine, EngineMetric } from "../../inference/engine/api.ts";
import { refuseField } from "../failure.ts";
import { Fields } from "../fields.ts";
import { expositionText, METRICS_KIND } from "../metrics.ts";
import type { Handler } from "../service.ts";
import { readTokens } from "./openai-completions.ts";

/** The process answers. */
export const health: Handler = async (exchange) => exchange.json(200, { status: "ok" });

/** New requests are taken, and no model is being loaded or has failed. */
export const ready: Handler = async (exchange, { models, isDraining }) => {
  const states = models.list().map(({ state }) => state);
  const problem = (["loading", "failed"] as const).find((state) => states.includes(state));
  const status = isDraining() ? "draining" : (problem ?? "ready");
  exchange.json(status === "ready" ? 200 : 503, { status });
};

export const metrics: Handler = async (exchange, service) => {
  const ofEngines = await Promise.all(
    service.models
      .loaded()
      .map(async ({ id, engine }) =>
        (await metricsOf(engine)).map(
          (metric): EngineMetric => ({ ...metric, labels: { model_name: id, ...metric.labels } }),
        ),
      ),
  );
  const deaths = service.models.list().map(
    ({ id, deaths: value }): EngineMetric => ({
      kind: "counter",
      name: "engine_deaths_total",
      help: "Engines that died and were, or could not be, opened again.",
      labels: { model_name: id },
      value,
    }),
  );
  const text = expositionText([...service.metrics.list(), ...deaths, ...ofEngines.flat()]);
  exchange.send(200, METRICS_KIND, text);
};

/** None of an engine that has died: the other engines' are still wanted. */
async function metricsOf(engine: Engine): Promise<readonly EngineMetric[]> {
  try {
    return await engine.metrics();
  } catch (error) {
    if (error instanceof OperationalError) return [];
    throw error;
  }
}

export const tokenize: Handler = async (exchange, { models }) => {
  const fields = new Fields(await exchange.body());
  const { tokenizer, description } = models.find(fields.requiredText("model")).engine;
  const [prompt, content] = [fields.text("prompt"), fields.text("content")];
  const text = prompt ?? content;
  const addsBos = fields.flag("add_special_tokens") ?? true;
  fields.end();
  if (text === undefined) refuseField("prompt", "is missing; it must be a string");
  const tokens = [...(addsBos ? [tokenizer.bosId] : []), ...tokenizer.encode(text)];
  exchange.json(200, { tokens, count: tokens.length, max_model_len: description.contextTokens });
};

export const detokenize: Handler = async (exchange, { models }) => {
  const fields = new Fields(await exchange.body());
  const { tokenizer, description } = models.find(fields.requiredText("model")).engine;
  const tokens = readTokens(fields.raw("tokens"), "tokens", description.vocabSize);
  fields.end();
  exchange.json(200, { prompt: tokenizer.decode(tokens) });
};
