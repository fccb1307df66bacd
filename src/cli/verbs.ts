/**
 * @file The verbs of `hadal`, each loaded only when it is called.
 *
 * To add one: declare it in `declarations/NAME.ts`, export `run: Run<typeof NAME>` from
 * `verbs/NAME.ts`, and list `verb(NAME, () => import("./verbs/NAME.ts"))` here.
 */
import { bench } from "./declarations/bench.ts";
import { chat } from "./declarations/chat.ts";
import { complete } from "./declarations/complete.ts";
import { doctor } from "./declarations/doctor.ts";
import { eplb } from "./declarations/eplb.ts";
import { evaluate } from "./declarations/evaluate.ts";
import { experiment } from "./declarations/experiment.ts";
import { exportModel } from "./declarations/export.ts";
import { inspect } from "./declarations/inspect.ts";
import { launch } from "./declarations/launch.ts";
import { quickstart } from "./declarations/quickstart.ts";
import { schedule } from "./declarations/schedule.ts";
import { serve } from "./declarations/serve.ts";
import { train } from "./declarations/train.ts";
import { type Verb, verb } from "./verb.ts";

export const VERBS: readonly Verb[] = [
  verb(quickstart, () => import("./verbs/quickstart.ts")),
  verb(train, () => import("./verbs/train.ts")),
  verb(complete, () => import("./verbs/complete.ts")),
  verb(chat, () => import("./verbs/chat.ts")),
  verb(serve, () => import("./verbs/serve.ts")),
  verb(evaluate, () => import("./verbs/evaluate.ts")),
  verb(inspect, () => import("./verbs/inspect.ts")),
  verb(exportModel, () => import("./verbs/export.ts")),
  verb(doctor, () => import("./verbs/doctor.ts")),
  verb(bench, () => import("./verbs/bench.ts")),
  verb(schedule, () => import("./verbs/schedule.ts")),
  verb(eplb, () => import("./verbs/eplb.ts")),
  verb(launch, () => import("./verbs/launch.ts")),
  verb(experiment, () => import("./verbs/experiment.ts")),
];
