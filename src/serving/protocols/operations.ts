/** @file For those who run the server: alive, ready, metrics; and the tokens of a text. */
import type { EngineMetric } from "../../inference/engine/api.ts";
import { refuseField } from "../failure.ts";
import { Fields } from "../fields.ts";
import { expositionText, METRICS_KIND } from "../metrics.ts";
import type { Handler } from "../service.ts";
import { readTokens } from "./openai-completions.ts";

/** The process answers. */
export const health: Handler = async (exchange) => exchange.json(200, { status: "ok" });

/** New requests are taken, and every model of the command line has its weights. */
export const ready: Handler = async (exchange, { models, isDraining }) => {
  const isLoading = models.list().some(({ state }) => state === "loading");
  const status = isDraining() ? "draining" : isLoading ? "loading" : "ready";
  exchange.json(status === "ready" ? 200 : 503, { status });
};

export const metrics: Handler = async (exchange, service) => {
  const ofEngines = await Promise.all(
    service.models
      .loaded()
      .map(async ({ id, engine }) =>
        (await engine.metrics()).map(
          (metric): EngineMetric => ({ ...metric, labels: { model_name: id, ...metric.labels } }),
        ),
      ),
  );
  const text = expositionText([...service.metrics.list(), ...ofEngines.flat()]);
  exchange.send(200, METRICS_KIND, text);
};

export const tokenize: Handler = async (exchange, { models }) => {
  const fields = new Fields(await exchange.body());
  const { tokenizer, description } = models.find(fields.requiredText("model")).engine;
  const text = fields.text("prompt") ?? fields.text("content");
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
