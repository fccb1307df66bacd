/**
 * @file What people see of a training run: the data, the model, a live line, evaluations,
 * checkpoints.
 */
import { counted } from "../base/counted.ts";
import { countParameters } from "../model/counts.ts";
import { PREPARE_STAGES, type PrepareStage } from "../training/prepare.ts";
import type { EvaluationKind, RunStart, TrainingObserver } from "../training/run/observer.ts";
import type { Output } from "./output.ts";

const EVALUATION_WORDS: Readonly<Record<EvaluationKind, string>> = {
  part: "held-out text, a part",
  whole: "held-out text",
  average: "held-out text, averaged weights",
};

/** An observer that prints; `minutes` is the budget while its number of steps is not known. */
export function trainingProgress(output: Output, minutes: number | null): TrainingObserver {
  return {
    onPrepare(stage: PrepareStage, share: number): void {
      const done = PREPARE_STAGES.indexOf(stage) + share;
      output.progress({ done, total: PREPARE_STAGES.length, text: stage });
    },
    onStart: (start) => describeStart(output, start),
    onStep(record, { plan }): void {
      const maxVio = Math.max(0, ...record.recentMaxVio);
      const words = [
        `step ${record.step + 1}${plan === undefined ? "" : `/${plan.totalSteps}`}`,
        `loss ${record.loss.toFixed(3)}`,
        `${Math.round(record.tokensPerSecond).toLocaleString("en")} tokens/s`,
        ...(record.recentMaxVio.length === 0
          ? []
          : [`busiest expert +${Math.round(100 * maxVio)} %`]),
      ];
      const total = plan?.totalSteps ?? (minutes ?? 0) * 60;
      const done = plan === undefined ? record.seconds : record.step + 1;
      output.progress({ done, total, text: words.join("  ") });
    },
    onEvaluation(step, result, kind): void {
      const figure = result.bitsPerByte.toFixed(3);
      output.line(`step ${step}: ${figure} bits per byte (${EVALUATION_WORDS[kind]})`);
    },
    onCheckpoint: (_step, path) => output.line(output.style("dim", `checkpoint ${path}`)),
    onWarning: (message) => output.warn(message),
  };
}

function describeStart(
  output: Output,
  { report, settings, vocabSize, trainTokens, step }: RunStart,
): void {
  const skipped = report.skippedBinary + report.skippedInvalidUtf8 + report.skippedUnreadable;
  const tokens = trainTokens.toLocaleString("en");
  const megabytes = (report.bytes / 1e6).toFixed(2);
  const lines = report.skippedLines;
  const files = counted(skipped, "file");
  output.line(
    `data: ${counted(report.documents, "document")}, ${megabytes} MB` +
      `${skipped === 0 ? "" : `, ${files} skipped (binary, not UTF-8 or unreadable)`}` +
      `${lines === 0 ? "" : `, ${counted(lines, "line")} of .jsonl skipped (without a text)`}`,
  );
  output.line(`tokenizer: ${vocabSize} tokens; ${tokens} tokens to train on`);
  const { total, active } = countParameters(settings.model);
  output.line(`model: ${millions(total)} parameters, ${millions(active)} active for a token`);
  if (step > 0) output.line(`resumed at step ${step}`);
}

function millions(count: number): string {
  return `${(count / 1e6).toFixed(2)} million`;
}
