/**
 * @file The verbs of `hadal`, each loaded only when it is called.
 *
 * To add one: declare it in `declarations/NAME.ts`, export `run: Run<typeof NAME>` from
 * `verbs/NAME.ts`, and list `verb(NAME, () => import("./verbs/NAME.ts"))` here.
 */
import type { Verb } from "./verb.ts";

export const VERBS: readonly Verb[] = [];
