/** @file What a model that is only to infer keeps of its weights, instead of master values. */

/** The matrices in bf16; norm gains and routing biases are f32 in every format. */
export type WeightFormat = "bf16";
