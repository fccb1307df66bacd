/**
 * @file Where a forward pass stops being finite: the first of its streams that is not, in the order
 * in which they are computed.
 *
 * When a loss is not finite, every gradient is NaN and says nothing about the cause; the streams
 * do, because what was computed before the cause is still finite. The pass is run once more with
 * everything kept, as a training step keeps it. A stream is what a half of a block has added to:
 * which half, and the layer with it, is as fine as the answer gets.
 */
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { Block, BlockSaved } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import type { Batch, BrokenStream } from "./model-types.ts";
import { blockName } from "./parameter-declarations.ts";
import type { Pass } from "./pass.ts";
import { type ModelLayers, runForward } from "./training-pass.ts";

interface Stream {
  readonly part: string;
  readonly tensor: Tensor<FloatType>;
}

/** The first stream of the batch's forward pass that is not finite; undefined if all are. */
export function findBrokenStream(
  layers: ModelLayers,
  pass: Pass,
  { batch, config }: { readonly batch: Batch; readonly config: ModelConfig },
): BrokenStream | undefined {
  for (const { part, tensor } of listStreams(layers, pass, { batch, config })) {
    const elements = view(tensor);
    let numBroken = 0;
    for (const value of elements) if (!Number.isFinite(value)) numBroken++;
    if (numBroken > 0) return { part, numBroken, numElements: elements.length };
  }
  return undefined;
}

function listStreams(
  layers: ModelLayers,
  pass: Pass,
  { batch, config }: { readonly batch: Batch; readonly config: ModelConfig },
): readonly Stream[] {
  const { trunk, modules } = runForward(layers, pass, batch);
  const { blocks, out } = trunk;
  const first = blocks[0]?.x ?? out;
  const normed = (norm: ModelLayers["norm"], x: Tensor<FloatType>): Tensor<FloatType> => {
    const result = pass.saved.allocate(pass.floatType, [x.rows, x.columns]);
    norm.forward(pass, x, result);
    return result;
  };
  return [
    { part: "embedding", tensor: first },
    ...blocks.flatMap((state, index) =>
      halvesOf(config, layers.blocks[index]!, state, blocks[index + 1]?.x ?? out),
    ),
    { part: "norm", tensor: normed(layers.norm, out) },
    ...modules.flatMap((state, index) => {
      const { block, outputNorm } = layers.mtpModules[index]!;
      return [
        { part: `mtp.${index}.projection`, tensor: state.block.x },
        ...halvesOf(config, block, state.block, state.out),
        { part: `mtp.${index}.outputNorm`, tensor: normed(outputNorm, state.out) },
      ];
    }),
  ];
}

function halvesOf(
  config: ModelConfig,
  { layerIndex, feedForward }: Block,
  state: BlockSaved,
  out: Tensor<FloatType>,
): readonly Stream[] {
  const name = blockName(config, layerIndex);
  const half = feedForward.kind === "moe" ? "moe" : "feedForward";
  return [
    { part: `${name}.attention`, tensor: state.mid },
    { part: `${name}.${half}`, tensor: out },
  ];
}
