/**
 * @file Where the parameters of a model stand in their spans, from the configuration alone.
 */
import { defined } from "../base/errors.ts";
import { divExact, roundUp } from "../base/integers.ts";
import type { ModelConfig } from "./config.ts";
import { declareParameters, type ParameterDeclaration } from "./parameter-declarations.ts";

/** The parts of a set; the last is empty in a dense model. */
export const SPAN_NAMES = ["decayed", "undecayed", "experts"] as const;
export type SpanName = (typeof SPAN_NAMES)[number];

/** The part a parameter lies in. */
export function spanNameOf({ role }: Pick<ParameterDeclaration, "role">): SpanName {
  if (role === "experts") return "experts";
  return role === "norm" ? "undecayed" : "decayed";
}

/** A rank's share of a model's parameters. */
export interface ParameterPart {
  readonly names: ReadonlySet<string>;
  /**
   * Held, but moved by the optimizer of another rank; they stand behind the others in every span.
   */
  readonly copies: ReadonlySet<string>;
}

/** Which of a model's parameters are held. */
export interface HeldParameters {
  /** Of all the model's, those that are held here; all if left out. */
  readonly part?: ParameterPart | undefined;
  /**
   * The routed expert in each place of this rank, of every MoE layer at the start; each in its own
   * place if left out. One may have several places, on one rank or on many.
   */
  readonly heldExperts?: readonly number[] | undefined;
}

/** Parameters start on cache lines even as bf16; zeros fill the gaps. */
const ALIGNMENT_ELEMENTS = 32;
/** Spans are whole rows of this many elements, so that row kernels can share them out. */
export const SPAN_ROW_ELEMENTS = 1024;

export interface Place {
  readonly declaration: ParameterDeclaration;
  /** First element within its span. */
  readonly start: number;
}

export interface Layout {
  readonly places: readonly Place[];
  readonly elements: Readonly<Record<SpanName, number>>;
  /** Of each span, how much the optimizer moves here. */
  readonly ownElements: Readonly<Record<SpanName, number>>;
  /** First element of each span that bf16 products read a copy of. */
  readonly roundedStart: Readonly<Record<SpanName, number>>;
}

/**
 * The embedding table comes first and, unless it is the head too, is left out of the bf16 copies:
 * rows are looked up from the values themselves. (Among copies of other ranks' parameters it may
 * stand elsewhere and is rounded for nothing.)
 */
export function layOut(config: ModelConfig, { part, heldExperts }: HeldParameters = {}): Layout {
  const ends: Record<SpanName, number> = { decayed: 0, undecayed: 0, experts: 0 };
  let lookedUp = 0;
  const starts = new Map<string, number>();
  const place = (declaration: ParameterDeclaration): void => {
    const { name, role, shape } = declaration;
    const span = spanNameOf(declaration);
    const start = ends[span];
    const [rows, columns] = shape;
    ends[span] = roundUp(start + rows * columns, ALIGNMENT_ELEMENTS);
    if (role === "embedding") {
      ends[span] = roundUp(ends[span], SPAN_ROW_ELEMENTS);
      if (!config.tieWordEmbeddings && start === 0) lookedUp = ends[span];
    }
    starts.set(name, start);
  };
  const close = (): Record<SpanName, number> => {
    for (const span of SPAN_NAMES) ends[span] = roundUp(ends[span], SPAN_ROW_ELEMENTS);
    return { ...ends };
  };
  const held = declareHeldParameters(config, { part, heldExperts });
  const isCopy = ({ name }: ParameterDeclaration): boolean => part?.copies.has(name) ?? false;
  for (const declaration of held) if (!isCopy(declaration)) place(declaration);
  const ownElements = close();
  for (const declaration of held) if (isCopy(declaration)) place(declaration);
  const elements = close();
  return {
    places: held.map((declaration) => {
      return { declaration, start: defined(starts.get(declaration.name), "a start") };
    }),
    elements,
    ownElements,
    roundedStart: { decayed: lookedUp, undecayed: elements.undecayed, experts: 0 },
  };
}

/** The parameters that are held, as they are here, in the order of the forward pass. */
export function declareHeldParameters(
  config: ModelConfig,
  { part, heldExperts }: HeldParameters,
): readonly ParameterDeclaration[] {
  return declareParameters(config)
    .filter(({ name }) => part?.names.has(name) ?? true)
    .map((declaration) => declareHeld(declaration, config, heldExperts?.length));
}

/** All parameters, with so many places for the experts of a layer, on all ranks together. */
export function declarePlaced(
  config: ModelConfig,
  numPlaces: number,
): readonly ParameterDeclaration[] {
  return declareParameters(config).map((declaration) =>
    declareHeld(declaration, config, numPlaces),
  );
}

/** Values of all those. */
export function countPlaced(config: ModelConfig, numPlaces: number): number {
  return declarePlaced(config, numPlaces).reduce((sum, { shape }) => sum + shape[0] * shape[1], 0);
}

/** A parameter as it is here, where not all routed experts are. */
function declareHeld(
  declaration: ParameterDeclaration,
  { numRoutedExperts }: ModelConfig,
  numHeld = numRoutedExperts,
): ParameterDeclaration {
  const { role, shape } = declaration;
  if (role !== "experts") return declaration;
  return { ...declaration, shape: [divExact(shape[0], numRoutedExperts) * numHeld, shape[1]] };
}
