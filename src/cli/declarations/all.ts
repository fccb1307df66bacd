/** @file Every verb's declaration, in the order `hadal --help` lists them. */
import type { Declaration } from "../declaration.ts";
import { bench } from "./bench.ts";
import { chat } from "./chat.ts";
import { complete } from "./complete.ts";
import { doctor } from "./doctor.ts";
import { eplb } from "./eplb.ts";
import { evaluate } from "./evaluate.ts";
import { experiment } from "./experiment.ts";
import { exportModel } from "./export.ts";
import { inspect } from "./inspect.ts";
import { launch } from "./launch.ts";
import { quickstart } from "./quickstart.ts";
import { schedule } from "./schedule.ts";
import { serve } from "./serve.ts";
import { train } from "./train.ts";

export const DECLARATIONS: readonly Declaration[] = [
  quickstart,
  train,
  complete,
  chat,
  serve,
  evaluate,
  inspect,
  exportModel,
  doctor,
  bench,
  schedule,
  eplb,
  launch,
  experiment,
];
