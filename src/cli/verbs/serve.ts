/** @file `hadal serve`: models over HTTP until Ctrl-C. */

import type { serve } from "../declarations/serve.ts";
import { launchedRanks } from "../ranks/launcher.ts";
import { serveOverRanks } from "../ranks/serve-over-ranks.ts";
import { serveModels } from "../serve-model.ts";
import type { Run } from "../verb.ts";

export const run: Run<typeof serve> = async (values, context) => {
  const { output } = context;
  let address = "";
  const isOverRanks = launchedRanks(context.env) !== undefined;
  await (isOverRanks ? serveOverRanks : serveModels)(
    {
      models: values.model,
      weights: values.weights,
      aliases: values.alias,
      host: values.host,
      port: values.port,
      keysFile: values.keys,
      requestsPerMinute: values["requests-per-minute"],
      requestsMax: values["max-requests"],
      allowedHosts: values["allow-host"],
      allowedOrigins: values["allow-origin"],
      role: values.role,
      expertRanks: values["expert-ranks"],
      redundantExperts: values["redundant-experts"],
      rebalanceTokens: values["rebalance-tokens"],
      prefixCacheFolder: values["prefix-cache-dir"],
      prefixCacheBytesMax: values["prefix-cache-disk-bytes"],
      drainSeconds: values["drain-seconds"],
    },
    context,
    ({ address: listening, names, curl }) => {
      address = listening;
      output.line(`serving ${names.join(", ")} at ${output.style("bold", address)}`);
      output.line();
      for (const line of curl) output.line(line);
      output.line();
    },
  );
  // The rank that reads prompts serves nobody.
  if (address !== "") output.result({ address });
};
