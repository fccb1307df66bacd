/**
 * @file The verbs of `hadal`, each loaded only when it is called.
 *
 * To add one: declare it in `declarations/NAME.ts`, export `run: Run<typeof NAME>` from
 * `verbs/NAME.ts`, and list `verb(NAME, () => import("./verbs/NAME.ts"))` here.
 */
import { bench } from "./declarations/bench.ts";
import { doctor } from "./declarations/doctor.ts";
import { type Verb, verb } from "./verb.ts";

export const VERBS: readonly Verb[] = [
  verb(doctor, () => import("./verbs/doctor.ts")),
  verb(bench, () => import("./verbs/bench.ts")),
];
