/**
 * @file A run folder: where one run's settings, metrics, samples and checkpoints live.
 *
 *     config.json            every setting, defaults written out
 *     plan.json              the run's length, once it is known
 *     metrics.jsonl          one line a step
 *     events.out.tfevents.*  the same for TensorBoard
 *     samples.jsonl          completions over time
 *     trace.json             what the ranks of a pipeline did in a step, as a Chrome trace
 *     summary.json           what a run that came to its end achieved
 *     tokens/                the tokenised corpus      checkpoints/step-N/     whole or not there
 *
 * A new run refuses a folder that holds one, or files that are no run's; a resumed run drops the
 * lines after its checkpoint (and a line that a kill left half written), so that the series of
 * losses has each step once. There is no "latest" pointer that could be wrong: the latest
 * checkpoint is the one with the largest step.
 */
import {
  appendFileSync,
  existsSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from "node:fs";
import { join } from "node:path";
import { defined, type ErrorCode, OperationalError, reasonOf } from "../../base/errors.ts";
import {
  makeDirectories,
  removeStaleTemporaries,
  writeFileAtomically,
} from "../../checkpoint/atomic.ts";
import {
  encodeFileStart,
  encodeScalars,
  eventFileName,
  type Scalars,
} from "../metrics/tensorboard.ts";
import { lockRun, type RunLock } from "./lock.ts";
import { checkStoredPlan, type StoredPlan } from "./stored-plan.ts";

const CONFIG_FILE = "config.json";
const PLAN_FILE = "plan.json";
const METRICS_FILE = "metrics.jsonl";
const SAMPLES_FILE = "samples.jsonl";
const SUMMARY_FILE = "summary.json";
const TRACE_FILE = "trace.json";
const CHECKPOINTS = "checkpoints";

export interface CheckpointPlace {
  readonly step: number;
  readonly path: string;
}

/** Whether `folder` holds a run; a checkpoint has a config.json too, but no checkpoints in it. */
export function isRunFolder(folder: string): boolean {
  return existsSync(join(folder, CONFIG_FILE)) && existsSync(join(folder, CHECKPOINTS));
}

/** The checkpoints of a run, oldest first. */
export function listCheckpoints(folder: string): readonly CheckpointPlace[] {
  const directory = join(folder, CHECKPOINTS);
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .map((name) => /^step-(\d{1,15})$/.exec(name))
    .filter((match) => match !== null)
    .map((match) => ({ step: Number(match[1]), path: join(directory, match[0]) }))
    .sort((left, right) => left.step - right.step);
}

/**
 * The checkpoint that `path` means: the folder itself if it is a checkpoint, the latest one if it
 * is a run.
 */
export function resolveCheckpoint(path: string): string {
  if (!statSync(path, { throwIfNoEntry: false })?.isDirectory()) {
    const gguf = path.endsWith(".gguf") ? " (GGUF files are for other programs)" : "";
    throw new OperationalError(
      "run.missing",
      `${path} is no folder; name a run folder, or a checkpoint folder with its config.json${gguf}`,
      { path },
    );
  }
  if (!isRunFolder(path)) return path;
  const last = listCheckpoints(path).at(-1);
  if (last !== undefined) return last.path;
  throw new OperationalError(
    "run.empty",
    `the run ${path} has no checkpoint yet; let it train until its first one`,
    { path },
  );
}

/** The settings a run was started with, not yet checked; refuses a folder without a run. */
export function readRunConfig(folder: string): unknown {
  refuseNoRun(folder);
  return readJson(join(folder, CONFIG_FILE), "run.unreadable");
}

/** The content of a settings file, not yet checked. */
export function readSettingsFile(path: string): unknown {
  return readJson(path, "config.unreadable");
}

export class RunFolder implements Disposable {
  readonly path: string;
  readonly #lock: RunLock;
  #events: string | undefined;

  private constructor(path: string, lock: RunLock) {
    this.path = path;
    this.#lock = lock;
  }

  /**
   * Begin a run in a folder that holds none. A run without a checkpoint never began, and is begun
   * again.
   */
  static create(path: string, config: unknown): RunFolder {
    refuseForeignFiles(path);
    return RunFolder.#openLocked(path, (folder) => {
      refuseBegunRun(path);
      rmSync(join(path, PLAN_FILE), { force: true });
      folder.writeConfig(config);
    });
  }

  /** Open a run to carry it on. */
  static open(path: string): RunFolder {
    refuseNoRun(path);
    return RunFolder.#openLocked(path, () => {});
  }

  static #openLocked(path: string, prepare: (folder: RunFolder) => void): RunFolder {
    try {
      makeDirectories(join(path, CHECKPOINTS));
    } catch (error) {
      throw new OperationalError("run.folder", `${path} cannot be made: ${reasonOf(error)}`, {
        path,
      });
    }
    const folder = new RunFolder(path, lockRun(path));
    try {
      removeStaleTemporaries(path);
      removeStaleTemporaries(join(path, CHECKPOINTS));
      prepare(folder);
    } catch (error) {
      folder[Symbol.dispose]();
      throw error;
    }
    return folder;
  }

  /** Where the tokenised corpus is kept. */
  get storePath(): string {
    return join(this.path, "tokens");
  }

  /**
   * Metrics and samples from step `nextStep` (0-based) on: what was noted of it and later is
   * dropped.
   */
  beginSeries(nextStep: number): void {
    keepLinesBefore(join(this.path, METRICS_FILE), nextStep);
    keepLinesBefore(join(this.path, SAMPLES_FILE), nextStep);
    this.#startEvents(nextStep);
  }

  writeConfig(config: unknown): void {
    writeFileAtomically(join(this.path, CONFIG_FILE), `${JSON.stringify(config, null, 2)}\n`);
  }

  writePlan(plan: StoredPlan): void {
    writeFileAtomically(join(this.path, PLAN_FILE), `${JSON.stringify(plan)}\n`);
  }

  /** What `writePlan` wrote last, or undefined. */
  readPlan(): StoredPlan | undefined {
    const path = join(this.path, PLAN_FILE);
    return existsSync(path) ? checkStoredPlan(readJson(path, "run.plan"), path) : undefined;
  }

  /** Note a step: one line, and one event per scalar. */
  appendMetrics(record: { readonly step: number }, scalars: Scalars): void {
    append(join(this.path, METRICS_FILE), `${JSON.stringify(record)}\n`);
    const event = encodeScalars(Date.now() / 1000, record.step, scalars);
    append(defined(this.#events, "the event file"), event);
  }

  appendSample(record: { readonly step: number }): void {
    append(join(this.path, SAMPLES_FILE), `${JSON.stringify(record)}\n`);
  }

  /** What each rank of a pipeline did in the last step before a checkpoint. */
  writeTrace(text: string): void {
    writeFileAtomically(join(this.path, TRACE_FILE), text);
  }

  writeSummary(summary: unknown): void {
    writeFileAtomically(join(this.path, SUMMARY_FILE), `${JSON.stringify(summary, null, 2)}\n`);
  }

  checkpointPath(step: number): string {
    return join(this.path, CHECKPOINTS, `step-${step}`);
  }

  /** Remove all but the last `keep` checkpoints. */
  pruneCheckpoints(keep: number): void {
    const places = listCheckpoints(this.path);
    for (const { path } of places.slice(0, Math.max(0, places.length - keep))) {
      // Renamed first: a kill in the middle of removing must not leave half a checkpoint under its
      // name.
      const doomed = `${path}.tmp-${process.pid}`;
      renameSync(path, doomed);
      rmSync(doomed, { recursive: true, force: true });
    }
  }

  #startEvents(nextStep: number): void {
    const wallSeconds = Date.now() / 1000;
    for (let sequence = 0; ; sequence++) {
      const path = join(this.path, eventFileName(wallSeconds, sequence));
      if (existsSync(path)) continue;
      append(path, encodeFileStart(wallSeconds, nextStep));
      this.#events = path;
      return;
    }
  }

  [Symbol.dispose](): void {
    this.#lock[Symbol.dispose]();
  }
}

/**
 * Rewrite a file of JSON lines without those of `step` and later, and without anything that is not
 * a record.
 */
function keepLinesBefore(path: string, step: number): void {
  if (!existsSync(path)) return;
  const lines = readFileSync(path, "utf8").split("\n");
  const kept = lines.filter((line) => {
    const at = stepOfLine(line);
    return at !== undefined && at < step;
  });
  writeFileAtomically(path, kept.map((line) => `${line}\n`).join(""));
}

function stepOfLine(line: string): number | undefined {
  try {
    const record = JSON.parse(line) as { step?: unknown } | null;
    return typeof record?.step === "number" ? record.step : undefined;
  } catch {
    return undefined;
  }
}

/** Refuse a folder where no run can begin: one has, or the files in it are somebody else's. */
export function refuseTakenFolder(path: string): void {
  refuseForeignFiles(path);
  refuseBegunRun(path);
}

/** A run makes its checkpoints' folder first; without that, what is there is no run's. */
function refuseForeignFiles(path: string): void {
  if (!existsSync(path) || existsSync(join(path, CHECKPOINTS))) return;
  if (!statSync(path).isDirectory()) return;
  const foreign = readdirSync(path).find((name) => !name.startsWith("."));
  if (foreign === undefined) return;
  throw new OperationalError(
    "run.exists",
    `${path} holds ${foreign}, which no run has written; a run has a folder of its own: ` +
      "choose another --out",
    { path },
  );
}

/** Refuse a folder whose run has begun: there is a checkpoint. */
function refuseBegunRun(path: string): void {
  if (listCheckpoints(path).length === 0) return;
  throw new OperationalError(
    "run.exists",
    `${path} already holds a run; carry on with hadal train --out ${path} --resume, ` +
      "or choose another --out",
    { path },
  );
}

function refuseNoRun(path: string): void {
  if (isRunFolder(path)) return;
  throw new OperationalError(
    "run.missing",
    `${path} holds no run to resume; leave --resume away to begin one`,
    { path },
  );
}

function readJson(path: string, code: ErrorCode): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    const message = `${path} is not readable JSON: ${reasonOf(error)}`;
    throw new OperationalError(code, message, { path }, error);
  }
}

/** Append to a file of the run; a full or read-only disk is the world's failure, not ours. */
function append(path: string, content: string | Uint8Array): void {
  try {
    appendFileSync(path, content);
  } catch (cause) {
    throw new OperationalError(
      "run.unwritable",
      `${path} cannot be written: ${reasonOf(cause)}; see to space and permissions, then --resume`,
      { path },
      cause,
    );
  }
}
