/**
 * @file A model as llama.cpp's `deepseek2` architecture: which tensors a GGUF file holds and how
 * their values are made.
 *
 * Attention is stored in its absorbed form: per head, attn_k_b is W_UK transposed ([C, N]) and
 * attn_v_b is W_UV as it is. Experts are stacked per matrix instead of per expert. Norms, gates and
 * routing biases are F32 in every file. The container is checkpoint/gguf.ts, the keys are
 * gguf-metadata.ts. Shapes are outermost first; the file turns them around. Source: llama.cpp's
 * loader of this architecture, verified against its logits.
 */
import { isMoeLayer, type ModelConfig } from "./config.ts";
import { checkGgufSupport, storesMtp } from "./gguf-metadata.ts";
import { blockName } from "./parameter-declarations.ts";
import { type ModelState, type TensorPlace, viewAt } from "./tensor-source.ts";

export interface GgufTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** Written one after another, each transposed first if `transposed`. */
  readonly parts: readonly TensorPlace[];
  /** Rows and columns of each part change places. */
  readonly transposed: boolean;
  /** F32 whatever the file's dtype. */
  readonly isFloat32: boolean;
}

/** Every tensor of the file. Refuses a configuration that llama.cpp would misread. */
export function ggufTensors(config: ModelConfig): readonly GgufTensor[] {
  checkGgufSupport(config);
  const { vocabSize, hiddenDim, numLayers } = config;
  const numBlocks = numLayers + (storesMtp(config) ? config.numMtpModules : 0);
  const tensors = [
    whole("token_embd.weight", "embedding", [vocabSize, hiddenDim]),
    norm("output_norm.weight", "norm", hiddenDim),
  ];
  if (!config.tieWordEmbeddings) {
    tensors.push(whole("output.weight", "head", [vocabSize, hiddenDim]));
  }
  for (let index = 0; index < numBlocks; index++) {
    const to = `blk.${index}`;
    const from = blockName(config, index);
    tensors.push(
      norm(`${to}.attn_norm.weight`, `${from}.attentionNorm`, hiddenDim),
      ...attentionTensors(config, to, `${from}.attention`),
      norm(`${to}.ffn_norm.weight`, `${from}.feedForwardNorm`, hiddenDim),
      ...(isMoeLayer(config, index)
        ? moeTensors(config, index)
        : feedForwardTensors(config, `${from}.feedForward`, denseNames(config, to))),
      ...(index < numLayers ? [] : mtpTensors(config, index)),
    );
  }
  return tensors;
}

/** The values of one tensor, in the order of the file. */
export function ggufValues(state: ModelState, tensor: GgufTensor): Float32Array {
  const numElements = tensor.shape.reduce((product, dimension) => product * dimension, 1);
  const out = new Float32Array(numElements);
  let at = 0;
  for (const place of tensor.parts) {
    const values = viewAt(state, place);
    if (tensor.transposed && place.kind === "rows") {
      const rows = place.rowEnd - place.rowStart;
      out.set(transpose(values, rows, values.length / rows), at);
    } else {
      out.set(values, at);
    }
    at += values.length;
  }
  return out;
}

function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      out[column * rows + row] = values[row * columns + column]!;
    }
  }
  return out;
}

function rowsOf(parameter: string, rowStart: number, rowEnd: number): TensorPlace {
  return { kind: "rows", parameter, rowStart, rowEnd };
}

function stored(name: string, shape: readonly number[], parts: readonly TensorPlace[]): GgufTensor {
  return { name, shape, parts, transposed: false, isFloat32: false };
}

function whole(name: string, parameter: string, shape: readonly [number, number]): GgufTensor {
  return stored(name, shape, [rowsOf(parameter, 0, shape[0])]);
}

function norm(name: string, parameter: string, width: number): GgufTensor {
  return { ...stored(name, [width], [rowsOf(parameter, 0, 1)]), isFloat32: true };
}

function attentionTensors(config: ModelConfig, to: string, from: string): GgufTensor[] {
  const { hiddenDim, numHeads, qLoraRank, kvLoraRank, qkNopeHeadDim, qkRopeHeadDim } = config;
  const queryDim = numHeads * (qkNopeHeadDim + qkRopeHeadDim);
  const query =
    qLoraRank === null
      ? [whole(`${to}.attn_q.weight`, `${from}.query`, [queryDim, hiddenDim])]
      : [
          whole(`${to}.attn_q_a.weight`, `${from}.queryDown`, [qLoraRank, hiddenDim]),
          norm(`${to}.attn_q_a_norm.weight`, `${from}.queryNorm`, qLoraRank),
          whole(`${to}.attn_q_b.weight`, `${from}.queryUp`, [queryDim, qLoraRank]),
        ];
  const rows = qkNopeHeadDim + config.vHeadDim;
  const perHead = (first: number, last: number): TensorPlace[] =>
    Array.from({ length: numHeads }, (_, head) =>
      rowsOf(`${from}.keyValueUp`, head * rows + first, head * rows + last),
    );
  const keys = perHead(0, qkNopeHeadDim);
  const values = perHead(qkNopeHeadDim, rows);
  const downRows = kvLoraRank + qkRopeHeadDim;
  const valueDim = numHeads * config.vHeadDim;
  const keyShape = [numHeads, kvLoraRank, qkNopeHeadDim];
  return [
    ...query,
    whole(`${to}.attn_kv_a_mqa.weight`, `${from}.keyValueDown`, [downRows, hiddenDim]),
    norm(`${to}.attn_kv_a_norm.weight`, `${from}.latentNorm`, kvLoraRank),
    { ...stored(`${to}.attn_k_b.weight`, keyShape, keys), transposed: true },
    stored(`${to}.attn_v_b.weight`, [numHeads, config.vHeadDim, kvLoraRank], values),
    whole(`${to}.attn_output.weight`, `${from}.output`, [hiddenDim, valueDim]),
  ];
}

interface FeedForwardNames {
  readonly width: number;
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

function denseNames({ intermediateDim }: ModelConfig, to: string): FeedForwardNames {
  return {
    width: intermediateDim,
    gate: `${to}.ffn_gate.weight`,
    up: `${to}.ffn_up.weight`,
    down: `${to}.ffn_down.weight`,
  };
}

function feedForwardTensors(
  config: ModelConfig,
  from: string,
  names: FeedForwardNames,
): GgufTensor[] {
  const { width } = names;
  const shape = [width, config.hiddenDim];
  return [
    stored(names.gate, shape, [rowsOf(`${from}.gateUp`, 0, width)]),
    stored(names.up, shape, [rowsOf(`${from}.gateUp`, width, 2 * width)]),
    whole(names.down, `${from}.down`, [config.hiddenDim, width]),
  ];
}

function moeTensors(config: ModelConfig, layerIndex: number): GgufTensor[] {
  const { numRoutedExperts: experts, moeIntermediateDim: width, hiddenDim } = config;
  const to = `blk.${layerIndex}`;
  const from = `${blockName(config, layerIndex)}.moe`;
  const perExpert = (rowsAt: (expert: number) => TensorPlace): TensorPlace[] =>
    Array.from({ length: experts }, (_, expert) => rowsAt(expert));
  const gateUpRows = (half: number): TensorPlace[] =>
    perExpert((expert) => {
      const start = (2 * expert + half) * width;
      return rowsOf(`${from}.experts.gateUp`, start, start + width);
    });
  const downRows = perExpert((expert) =>
    rowsOf(`${from}.experts.down`, expert * hiddenDim, (expert + 1) * hiddenDim),
  );
  const gate = whole(`${to}.ffn_gate_inp.weight`, `${from}.gate`, [experts, hiddenDim]);
  const bias = stored(`${to}.exp_probs_b.bias`, [experts], [{ kind: "gateBias", layerIndex }]);
  return [
    { ...gate, isFloat32: true },
    ...(config.topkMethod === "noaux_tc" ? [{ ...bias, isFloat32: true }] : []),
    stored(`${to}.ffn_gate_exps.weight`, [experts, width, hiddenDim], gateUpRows(0)),
    stored(`${to}.ffn_up_exps.weight`, [experts, width, hiddenDim], gateUpRows(1)),
    stored(`${to}.ffn_down_exps.weight`, [experts, hiddenDim, width], downRows),
    ...feedForwardTensors(config, `${from}.sharedExperts`, {
      width: config.numSharedExperts * width,
      gate: `${to}.ffn_gate_shexp.weight`,
      up: `${to}.ffn_up_shexp.weight`,
      down: `${to}.ffn_down_shexp.weight`,
    }),
  ];
}

function mtpTensors(config: ModelConfig, layerIndex: number): GgufTensor[] {
  const { hiddenDim } = config;
  const to = `blk.${layerIndex}.nextn`;
  const from = `mtp.${layerIndex - config.numLayers}`;
  return [
    whole(`${to}.eh_proj.weight`, `${from}.projection`, [hiddenDim, 2 * hiddenDim]),
    norm(`${to}.enorm.weight`, `${from}.embeddingNorm`, hiddenDim),
    norm(`${to}.hnorm.weight`, `${from}.hiddenNorm`, hiddenDim),
    norm(`${to}.shared_head_norm.weight`, `${from}.outputNorm`, hiddenDim),
  ];
}
