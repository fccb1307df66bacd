/** @file What a training run tells whoever started it; every method may be left out. */

import type { RunPlan } from "../budget.ts";
import type { CorpusReport } from "../data/corpus.ts";
import type { StepRecord } from "../metrics/record.ts";
import type { PrepareStage } from "../prepare.ts";
import type { TrainingSettings } from "../settings.ts";
import type { ValidationResult } from "../validation.ts";

/** Where a run stands, for a progress line. */
export interface RunProgress {
  /** Undefined while a budget in minutes is being measured. */
  readonly plan: RunPlan | undefined;
  /** Seconds until the plan's last step at the present speed; undefined without a plan. */
  readonly secondsLeft: number | undefined;
}

export interface RunStart {
  readonly settings: TrainingSettings;
  /** Of the tokenizer. */
  readonly vocabSize: number;
  readonly report: CorpusReport;
  readonly trainTokens: number;
  /** The step a resumed run goes on with; 0 for a new one. */
  readonly step: number;
}

export interface TrainingObserver {
  onPrepare?(stage: PrepareStage, share: number): void;
  onStart?(start: RunStart): void;
  onPlan?(plan: RunPlan): void;
  onStep?(record: StepRecord, progress: RunProgress): void;
  /** After `step` steps; `kind` says of which weights and of how much of the held-out text. */
  onEvaluation?(step: number, result: ValidationResult, kind: EvaluationKind): void;
  onCheckpoint?(step: number, path: string): void;
  onWarning?(message: string): void;
}

export type EvaluationKind = "part" | "whole" | "average";
