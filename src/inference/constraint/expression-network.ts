/** @file Regular expressions to networks, whatever a character is written as. */
import { ANY_CODE_POINT, plainSet, type WriteSet } from "./code-points.ts";
import { type Network, NetworkBuilder } from "./network.ts";
import { type Alternative, type Expression, parseRegularExpression } from "./regular-expression.ts";

/** The texts that the whole pattern matches, from the first to the last character. */
export function compilePattern(pattern: string): Network {
  const alternatives = parseRegularExpression(pattern);
  const builder = new NetworkBuilder();
  builder.define(builder.newRule(), (from) =>
    addAlternatives(builder, plainSet(builder), { from, alternatives, isSearch: false }),
  );
  return builder.finish();
}

/** A search finds its match anywhere, unless an alternative is anchored. */
export function addAlternatives(
  builder: NetworkBuilder,
  writeSet: WriteSet,
  given: {
    readonly from: number;
    readonly alternatives: readonly Alternative[];
    readonly isSearch: boolean;
  },
): number {
  const anything = (from: number): number =>
    builder.repeat(from, 0, Number.POSITIVE_INFINITY, (at) => writeSet(at, ANY_CODE_POINT));
  return builder.choice(
    given.from,
    given.alternatives.map(({ expression, fromStart, toEnd }) => (start) => {
      const begin = given.isSearch && !fromStart ? anything(start) : start;
      const end = addExpression(builder, writeSet, begin, expression);
      return given.isSearch && !toEnd ? anything(end) : end;
    }),
  );
}

function addExpression(
  builder: NetworkBuilder,
  writeSet: WriteSet,
  from: number,
  expression: Expression,
): number {
  const add = (state: number, part: Expression): number =>
    addExpression(builder, writeSet, state, part);
  switch (expression.kind) {
    case "set":
      return writeSet(from, expression.ranges);
    case "sequence":
      return expression.parts.reduce(add, from);
    case "choice":
      return builder.choice(
        from,
        expression.options.map((option) => (start) => add(start, option)),
      );
    case "repeat": {
      const { least, most, part } = expression;
      return builder.repeat(from, least, most, (start) => add(start, part));
    }
  }
}
