/**
 * @file plan.json of a run folder: how long the run is, and the budget that decided it.
 *
 * A file that does not hold exactly that is refused with its path: a run whose length came from a
 * damaged file would follow other schedules than the ones it began with.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Budget, RunPlan } from "../budget.ts";
import {
  integer,
  type Leaf,
  oneOf,
  readExactly,
  real,
  type Schema,
  whole,
} from "../settings-schema.ts";

/** A plan on disk, and the budget it was made for. */
export interface StoredPlan {
  readonly budget: Budget;
  readonly plan: RunPlan;
}

const PLAN_FIELDS: Schema<RunPlan> = {
  fixedAtStep: integer(0),
  totalSteps: integer(0),
  totalTokens: integer(0),
};

/** A plan as one value. */
export const PLAN: Leaf<RunPlan> = whole(PLAN_FIELDS);

const BUDGET: Leaf<Budget> = oneOf<Budget>([
  whole({ steps: integer(1) }),
  whole({ tokens: integer(1) }),
  whole({ minutes: real(0) }),
]);

const STORED_PLAN: Schema<StoredPlan> = { budget: BUDGET, plan: PLAN };

/** The content of the plan file at `path`, checked. */
export function checkStoredPlan(value: unknown, path: string): StoredPlan {
  const refuse = (problem: string): OperationalError =>
    new OperationalError(
      "run.plan",
      `${path}: ${problem}; remove the file, and the run's length is determined anew`,
      { path },
    );
  return readExactly(STORED_PLAN, value, refuse);
}
