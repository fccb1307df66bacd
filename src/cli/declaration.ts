/**
 * @file What a verb declares about itself: flags, operands, help. Plain data, checked and typed
 * from one place.
 *
 * A declaration is written `{ … } as const`, so that `Values` can give each flag its exact type:
 * choices become a union, a flag that may be absent admits `undefined`. Nothing here reads a
 * command line; `parse.ts` does.
 */

interface FlagText {
  readonly help: string;
}

interface FlagPresence {
  /** The flag must be given, unless the switch named by `unless` is. */
  readonly required?: true;
  readonly unless?: string;
}

export interface TextFlag extends FlagText, FlagPresence {
  readonly kind: "text";
  readonly placeholder: string;
  readonly choices?: readonly string[];
  readonly default?: string;
}

export interface NumberFlag extends FlagText, FlagPresence {
  readonly kind: "number";
  readonly placeholder: string;
  readonly whole?: true;
  /** Bounds: `least` and `most` are allowed themselves, `above` is not. */
  readonly least?: number;
  readonly above?: number;
  readonly most?: number;
  readonly default?: number;
}

/** On when named, off otherwise. */
export interface SwitchFlag extends FlagText {
  readonly kind: "switch";
}

/**
 * May be repeated; `variadic` also takes every word that follows, as a shell's `*.ts` gives them.
 */
export interface ListFlag extends FlagText, FlagPresence {
  readonly kind: "list";
  readonly placeholder: string;
  readonly variadic?: true;
}

export type Flag = TextFlag | NumberFlag | SwitchFlag | ListFlag;

/** A word without a flag, such as MODEL in `hadal inspect MODEL`; always required. */
export interface Operand {
  readonly placeholder: string;
  readonly help: string;
  readonly choices?: readonly string[];
}

export interface Example {
  readonly command: string;
  readonly does: string;
}

export interface Declaration {
  readonly name: string;
  /** One line for the list of verbs. */
  readonly summary: string;
  /** The words after `hadal NAME`. */
  readonly usage: string;
  /** In the order they are written on the command line. */
  readonly operands?: Readonly<Record<string, Operand>>;
  /** The words after `--`, at least one, which are somebody else's command line. */
  readonly rest?: Operand;
  readonly flags: Readonly<Record<string, Flag>>;
  /** Groups of flags of which at most one may be given. */
  readonly atMostOneOf?: readonly (readonly string[])[];
  readonly examples: readonly Example[];
}

type Absent<F> = F extends { readonly default: string | number }
  ? never
  : F extends { readonly unless: string }
    ? undefined
    : F extends { readonly required: true }
      ? never
      : undefined;

type Choice<F> = F extends { readonly choices: readonly (infer C)[] } ? C : string;

type FlagValue<F> = F extends { readonly kind: "switch" }
  ? boolean
  : F extends { readonly kind: "list" }
    ? readonly string[]
    : (F extends { readonly kind: "number" } ? number : Choice<F>) | Absent<F>;

type OperandValues<D> = D extends { readonly operands: infer P }
  ? { readonly [Name in keyof P]: Choice<P[Name]> }
  : unknown;

type RestValues<D> = D extends { readonly rest: Operand }
  ? { readonly rest: readonly string[] }
  : unknown;

/** What a command line gave, by the names of the flags and operands: `values["max-tokens"]`. */
export type Values<D extends Declaration> = {
  readonly [Name in keyof D["flags"]]: FlagValue<D["flags"][Name]>;
} & OperandValues<D> &
  RestValues<D>;
