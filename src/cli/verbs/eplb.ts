/** @file `hadal eplb`: expert placement from measured loads, layer by layer. */
import { readFileSync } from "node:fs";
import { OperationalError, reasonOf } from "../../base/errors.ts";
import { parseLoads } from "../../parallel/expert/placement/parse-loads.ts";
import {
  gpuLoads,
  imbalance,
  isHierarchical,
  type Placement,
  type PlacementShape,
  placeExperts,
} from "../../parallel/expert/placement/place-experts.ts";
import type { eplb } from "../declarations/eplb.ts";
import type { Run } from "../verb.ts";

export const run: Run<typeof eplb> = async (values, { output }) => {
  const shape: PlacementShape = {
    numPhysicalExperts: values.replicas,
    numGroups: values.groups,
    numNodes: values.nodes,
    numGpus: values.gpus,
  };
  const loads = parseLoads(readText(values.loads), values.loads);
  const placements = loads.map((load) => placeExperts(load, shape));
  const policy = isHierarchical(shape) ? "hierarchical" : "global";
  output.line(`${policy} placement; experts of each GPU, then largest load ÷ mean\n`);
  for (const [layer, placement] of placements.entries()) {
    const balance = imbalance(gpuLoads(placement, loads[layer]!, shape.numGpus));
    output.line(`layer ${layer}: ${describe(placement, shape)}  ${balance.toFixed(3)}`);
  }
  const mostReplicas = placements
    .flatMap(({ replicaCounts }) => replicaCounts)
    .reduce((most, count) => Math.max(most, count), 1);
  output.result({
    physicalToLogical: placements.map(({ physicalToLogical }) => physicalToLogical),
    logicalToPhysical: placements.map(({ logicalToPhysical }) =>
      logicalToPhysical.map((slots) => padded(slots, mostReplicas)),
    ),
    replicaCounts: placements.map(({ replicaCounts }) => replicaCounts),
  });
};

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new OperationalError(
      "parallel.loads",
      `${path} cannot be read: ${reasonOf(cause)}`,
      { path },
      cause,
    );
  }
}

function describe({ physicalToLogical }: Placement, { numGpus }: PlacementShape): string {
  const slotsPerGpu = physicalToLogical.length / numGpus;
  return Array.from({ length: numGpus }, (_, gpu) =>
    physicalToLogical.slice(gpu * slotsPerGpu, (gpu + 1) * slotsPerGpu).join(" "),
  ).join(" | ");
}

/** Slots as others read them: −1 where an expert has fewer replicas than the most. */
function padded(slots: readonly number[], length: number): number[] {
  return Array.from({ length }, (_, replica) => slots[replica] ?? -1);
}
