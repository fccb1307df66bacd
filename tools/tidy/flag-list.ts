/**
 * @file The verbs' flags as lines of text: the golden that makes a change of the command line a
 * decision.
 */
import type { Declaration, Flag } from "../../src/cli/declaration.ts";

/** One line a verb, an operand, a flag, in the declared order. */
export function flagList(declarations: readonly Declaration[]): string {
  const lines = declarations.flatMap(({ name, operands = {}, rest, flags, atMostOneOf = [] }) => [
    `hadal ${name}`,
    ...Object.values(operands).map(
      ({ placeholder, choices }) => `  ${placeholder}${choices ? ` ${choices.join("|")}` : ""}`,
    ),
    ...(rest === undefined ? [] : [`  -- ${rest.placeholder}`]),
    ...Object.entries(flags).map(([flagName, flag]) => `  --${flagName} ${describeFlag(flag)}`),
    ...atMostOneOf.map((group) => `  at most one of --${group.join(", --")}`),
  ]);
  return `${lines.join("\n")}\n`;
}

function describeFlag(flag: Flag): string {
  const { help: _, kind, ...rest } = flag;
  const details = Object.entries(rest).map(([key, value]) => `${key}=${value}`);
  return [kind, ...details].join(" ");
}
