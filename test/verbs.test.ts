/**
 * @file The verbs as a user runs them: a model trained, resumed, completed with, measured,
 * inspected, exported.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { openGguf } from "../src/checkpoint/gguf-reader.ts";

const HADAL = fileURLToPath(new URL("../bin/hadal.js", import.meta.url));

let folder: string;
let runPath: string;

interface Finished {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function hadal(...args: string[]): Finished {
  const { status, stdout, stderr } = spawnSync(process.execPath, [HADAL, ...args], {
    cwd: folder,
    encoding: "utf8",
  });
  return { code: status, stdout, stderr };
}

/** The object on the last line of a run that must succeed. */
function resultOf(...args: string[]): Record<string, unknown> {
  const { code, stdout, stderr } = hadal(...args, "--json");
  assert.equal(code, 0, stderr);
  const lines = stdout.trimEnd().split("\n");
  return JSON.parse(lines.at(-1)!) as Record<string, unknown>;
}

before(() => {
  folder = mkdtempSync(join(tmpdir(), "hadal-verbs-"));
  runPath = join(folder, "run");
  const data = join(folder, "data");
  mkdirSync(data);
  for (let file = 0; file < 12; file++) {
    const lines = Array.from(
      { length: 150 },
      (_, line) => `export function step${file}of${line % 9}(value: number): string;\n`,
    );
    writeFileSync(join(data, `part${file}.ts`), lines.join(""));
  }
  const args = ["--data", data, "--preset", "tiny", "--set", "model.vocabSize=320"];
  const trained = resultOf("train", ...args, "--steps", "4", "--out", runPath);
  assert.equal(trained["steps"], 4);
});
after(() => rmSync(folder, { recursive: true, force: true }));

test("train writes a run folder with its settings, metrics and checkpoints", () => {
  const settings = JSON.parse(readFileSync(join(runPath, "config.json"), "utf8"));
  assert.equal(settings.model.hiddenDim, 192);
  assert.equal(readFileSync(join(runPath, "metrics.jsonl"), "utf8").trim().split("\n").length, 4);
  assert.ok(existsSync(join(runPath, "checkpoints", "step-4", "model.safetensors")));
});

test("train --resume carries on where the run stopped", () => {
  const result = resultOf("train", "--out", runPath, "--resume", "--steps", "6");
  assert.equal(result["steps"], 6);
  const lines = readFileSync(join(runPath, "metrics.jsonl"), "utf8").trim().split("\n");
  assert.deepEqual(
    lines.map((line) => JSON.parse(line).step),
    [0, 1, 2, 3, 4, 5],
  );
});

test("train refuses a run folder that exists, and says what to do", () => {
  const { code, stderr } = hadal("train", "--data", "data", "--steps", "1", "--out", runPath);
  assert.equal(code, 1);
  assert.match(stderr, /--resume/);
});

test("complete continues a text, and the same seed gives the same text", () => {
  const args = ["complete", "--model", runPath, "--prefix", "export ", "--max-tokens", "8"];
  const warm = [...args, "--temperature", "1", "--seed", "5"];
  assert.equal(typeof resultOf(...args)["text"], "string");
  assert.equal(resultOf(...warm)["text"], resultOf(...warm)["text"]);
});

test("complete fills a line of a file", () => {
  const result = resultOf(
    ...["complete", "--model", runPath, "--file", join(folder, "data", "part0.ts")],
    ...["--line", "3", "--max-tokens", "4"],
  );
  assert.ok((result["promptTokens"] as number) > 20);
});

test("a checkpoint's own folder works where its run does", () => {
  const checkpoint = join(runPath, "checkpoints", "step-6");
  const result = resultOf("complete", "--model", checkpoint, "--prefix", "a", "--max-tokens", "2");
  assert.equal(result["tokens"], 2);
});

test("complete refuses a line beyond the file and a model that is not there", () => {
  const file = join(folder, "data", "part0.ts");
  const beyond = hadal("complete", "--model", runPath, "--file", file, "--line", "999");
  assert.match(beyond.stderr, /--line 999 is beyond the 151 lines/);
  const missing = hadal("complete", "--model", join(folder, "none"), "--prefix", "x");
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /none is no folder; name a run folder/);
  assert.doesNotMatch(missing.stderr, /at file:/);
});

test("train says in words which file, recipe or run is not there", () => {
  const refusalOf = (...args: string[]): string => {
    const { code, stderr } = hadal("train", "--steps", "1", "--out", "refused", ...args);
    assert.equal(code, 1);
    return stderr;
  };
  assert.match(refusalOf("--resume"), /^error: refused holds no run to resume; leave --resume/m);
  assert.match(
    refusalOf("--data", "gone"),
    /^error: gone cannot be read \(there is no such file or folder\); name a file/m,
  );
  assert.match(
    refusalOf("--data", "data", "--recipe", "fp9"),
    /^error: fp9 is neither a recipe nor a file; give fp8, bf16, f32 or a JSON file$/m,
  );
  assert.match(
    refusalOf("--data", "data", "--config", "gone.json"),
    /^error: gone.json is not readable JSON: there is no such file or folder$/m,
  );
});

test("complete refuses to continue nothing", () => {
  const { code, stderr } = hadal("complete", "--model", runPath, "--max-tokens", "2");
  assert.equal(code, 2);
  assert.match(stderr, /^error: give the text to continue, --prefix TEXT, or .*--file F --line N/);
});

test("evaluate bpb names files as they were named, and counts one as one", () => {
  const file = join("data", "part3.ts");
  const { stdout } = hadal("evaluate", "bpb", "--model", "run", "--data", file);
  assert.match(stdout, /^data\/part3\.ts +[\d,]+ +\d\.\d+$/m);
  assert.match(stdout, /^all 1 document +[\d,]+ /m);
});

test("evaluate bpb counts every byte of the files once", () => {
  const file = join(folder, "data", "part3.ts");
  const result = resultOf("evaluate", "bpb", "--model", runPath, "--data", file);
  assert.equal(result["bytes"], readFileSync(file).length);
  const bitsPerByte = result["bitsPerByte"] as number;
  assert.ok(bitsPerByte > 0 && bitsPerByte < 8, `${bitsPerByte}`);
});

test("inspect counts what the checkpoint holds", () => {
  const { parameters, tensors } = resultOf("inspect", runPath) as {
    parameters: { total: number; embedding: number; head: number };
    tensors: { shape: number[] }[];
  };
  const stored = tensors.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  const config = JSON.parse(
    readFileSync(join(runPath, "checkpoints", "step-4", "config.json"), "utf8"),
  );
  // Files hold the MTP module's own copies of embedding and head, and the routing biases, which are
  // not trained.
  const { num_hidden_layers, first_k_dense_replace, n_routed_experts } = config;
  const biases = (num_hidden_layers - first_k_dense_replace + 1) * n_routed_experts;
  assert.equal(stored, parameters.total + parameters.embedding + parameters.head + biases);
});

test("export writes a GGUF file that reads back", () => {
  const out = join(folder, "model.gguf");
  resultOf("export", "--model", runPath, "--format", "gguf", "--out", out, "--dtype", "f32");
  using file = openGguf(out);
  assert.deepEqual(file.metadata.get("general.architecture"), {
    type: "string",
    value: "deepseek2",
  });
});

test("export with smaller weights writes a checkpoint that computes as loading in them", () => {
  const out = join(folder, "int4");
  const args = ["--format", "huggingface", "--weights", "int4:g64a", "--out", out];
  const { bytes } = resultOf("export", "--model", runPath, ...args);
  const file = join(folder, "data", "part3.ts");
  const bitsOf = (...model: string[]): unknown =>
    resultOf("evaluate", "bpb", "--data", file, "--model", ...model)["bitsPerByte"];
  assert.equal(bitsOf(out), bitsOf(runPath, "--weights", "int4:g64a"));
  assert.notEqual(bitsOf(out), bitsOf(runPath));
  const { inferenceWeights } = resultOf("inspect", out) as {
    inferenceWeights: { stored: string; bytes: Record<string, number> };
  };
  assert.equal(inferenceWeights.stored, "int4:g64a");
  assert.ok(inferenceWeights.bytes["int4:g64a"]! < inferenceWeights.bytes["bf16"]!);
  assert.ok((bytes as number) < inferenceWeights.bytes["f32"]!);
});

test("export does not write over a file, or a folder that holds something", () => {
  const filesOfRun = () => readdirSync(runPath, { recursive: true }).map(String).toSorted();
  const before = filesOfRun();
  for (const format of ["huggingface", "gguf"]) {
    for (const out of [runPath, join(runPath, "config.json")]) {
      const args = ["--model", runPath, "--format", format, "--out", out];
      const { code, stderr } = hadal("export", ...args);
      assert.equal(code, 1);
      assert.match(stderr, /^error: .* is there already, .*another --out/m);
    }
  }
  assert.deepEqual(filesOfRun(), before);
});

test("export refuses the other format's way of saying what weights are stored in", () => {
  const args = ["export", "--model", runPath, "--out", join(folder, "never")];
  const refused = hadal(...args, "--format", "huggingface", "--dtype", "q8_0");
  assert.match(refused.stderr, /--format huggingface takes --weights, not --dtype/);
});
