/** @file The list of models, and loading and unloading them. */
import { Fields } from "../fields.ts";
import type { ModelStatus } from "../models/registry.ts";
import type { Handler, Service } from "../service.ts";

export const listModels: Handler = async (exchange, service) => {
  const { models } = service;
  const own = models.list().map((status) => modelObject(status, service));
  const aliases = [...models.aliases].filter(([alias]) => !alias.endsWith("*"));
  const named = aliases.map(([alias, id]) => {
    const status = models.list().find((one) => one.id === id)!;
    return { ...modelObject(status, service), id: alias, root: id };
  });
  exchange.json(200, { object: "list", data: [...own, ...named] });
};

export const showModel: Handler = async (exchange, service) => {
  const id = service.models.resolve(exchange.param);
  const status = service.models.list().find((one) => one.id === id)!;
  exchange.json(200, modelObject(status, service));
};

function modelObject({ id, state, estimatedBytes }: ModelStatus, service: Service): object {
  const loaded = service.models.loaded().find((model) => model.id === id);
  return {
    id,
    object: "model",
    created: service.startedAt,
    owned_by: "hadal",
    state,
    estimated_bytes: estimatedBytes,
    context_tokens: loaded?.engine.description.contextTokens ?? null,
  };
}

export const loadModel: Handler = async (exchange, { models }) => {
  const name = await readName(exchange);
  const { id } = await models.load(name);
  exchange.json(200, { id, state: "loaded" });
};

export const unloadModel: Handler = async (exchange, { models }) => {
  const name = await readName(exchange);
  const id = models.resolve(name);
  await models.unload(id);
  exchange.json(200, { id, state: "unloaded" });
};

async function readName(exchange: Parameters<Handler>[0]): Promise<string> {
  const fields = new Fields(await exchange.body());
  const name = fields.requiredText("model");
  fields.end();
  return name;
}
