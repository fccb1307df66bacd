/** @file The whole command line with fake verbs: streams, exit codes, errors, interruption. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { FakeTerminal } from "../../test/fake-terminal.ts";
import { assert as invariant, OperationalError } from "../base/errors.ts";
import { Interruption } from "./interruption.ts";
import { main } from "./main.ts";
import { type Context, type Run, type Verb, verb } from "./verb.ts";

const sing = {
  name: "sing",
  summary: "sing a song",
  usage: "[--times N]",
  flags: {
    times: { kind: "number", placeholder: "N", whole: true, least: 1, help: "verses", default: 1 },
  },
  examples: [{ command: "hadal sing --times 3", does: "three verses" }],
} as const;

interface Ending {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  /** The codes that an interruption ended the process with at once. */
  readonly exits: readonly number[];
}

interface Setting {
  readonly run?: Run<typeof sing>;
  readonly isTTY?: boolean;
  readonly columns?: number;
  readonly env?: Readonly<Record<string, string>>;
}

async function hadal(words: readonly string[], setting: Setting = {}): Promise<Ending> {
  const { run = chorus, isTTY = false, columns = 80, env = {} } = setting;
  const stdout = new FakeTerminal({ isTTY, columns });
  const stderr = new FakeTerminal({ isTTY, columns });
  const exits: number[] = [];
  const interruption = new Interruption((code) => exits.push(code));
  const verbs: readonly Verb[] = [verb(sing, async () => ({ run }))];
  const code = await main(words, verbs, { stdout, stderr, env, interruption });
  return { code, stdout: stdout.text, stderr: stderr.text, exits };
}

const chorus: Run<typeof sing> = async ({ times }, { output }) => {
  output.line("la ".repeat(times).trim());
  output.result({ times });
};

const failing =
  (error: unknown): Run<typeof sing> =>
  async () => {
    throw error;
  };

describe("hadal", () => {
  test("runs a verb with its values and returns 0", async () => {
    const ending = await hadal(["sing", "--times", "3"]);
    assert.deepEqual(ending, { code: 0, stdout: "la la la\n", stderr: "", exits: [] });
  });

  test("prints its version", async () => {
    assert.match((await hadal(["--version"])).stdout, /^hadal \d+\.\d+\.\d+\n$/);
    const json = JSON.parse((await hadal(["--version", "--json"])).stdout);
    assert.match(json.version, /^\d/);
  });

  test("lists the verbs with --help, and on stderr with code 2 when called bare", async () => {
    const asked = await hadal(["--help"]);
    assert.equal(asked.code, 0);
    assert.match(asked.stdout, /sing {2}sing a song/);
    const bare = await hadal([]);
    assert.deepEqual([bare.code, bare.stdout], [2, ""]);
    assert.match(bare.stderr, /sing a song/);
  });

  test("explains a verb: usage, flags with ranges and defaults, examples", async () => {
    const { stdout, code } = await hadal(["sing", "--help"]);
    assert.equal(code, 0);
    assert.match(stdout, /Usage: hadal sing \[--times N\]/);
    assert.match(stdout, /--times N +verses \(a whole number >= 1; default: 1\)/);
    assert.match(stdout, /--json/);
    assert.match(stdout, /hadal sing --times 3\n +three verses/);
  });

  test("keeps help within the terminal's width", async () => {
    const { stdout } = await hadal(["sing", "--help"], { columns: 48 });
    for (const line of stdout.split("\n")) assert.ok(line.length <= 48, line);
  });

  test("takes a terminal without a width, as mpirun's, for an ordinary one", async () => {
    const untold = await hadal(["sing", "--help"], { columns: 0 });
    assert.equal(untold.stdout, (await hadal(["sing", "--help"])).stdout);
  });

  test("refuses an unknown verb and an unknown flag with code 2 and a guess", async () => {
    const noVerb = await hadal(["sign"]);
    assert.equal(noVerb.code, 2);
    assert.match(noVerb.stderr, /unknown verb sign; did you mean hadal sing\?/);
    const noFlag = await hadal(["sing", "--time", "3"]);
    assert.equal(noFlag.code, 2);
    assert.match(noFlag.stderr, /did you mean --times\?/);
    assert.doesNotMatch(noFlag.stderr, /\n\s+at /, "a stack was shown");
  });
});

describe("with --json", () => {
  test("stdout holds the result and nothing else", async () => {
    const run: Run<typeof sing> = async (_, { output }) => {
      output.line("not for machines");
      output.warn("the piano is out of tune");
      output.result({ verses: 2 });
    };
    const { stdout, stderr } = await hadal(["sing", "--json"], { run });
    assert.equal(stdout, '{"verses":2}\n');
    assert.equal(stderr, "warning: the piano is out of tune\n");
  });

  test("a failure is a JSON object too, and words on stderr", async () => {
    const error = new OperationalError("data.missing", "song.txt is missing", { path: "song.txt" });
    const { stdout, stderr, code } = await hadal(["sing", "--json"], { run: failing(error) });
    assert.equal(code, 1);
    assert.deepEqual(JSON.parse(stdout), {
      error: {
        code: "data.missing",
        message: "song.txt is missing",
        details: { path: "song.txt" },
      },
    });
    assert.equal(stderr, "error: song.txt is missing\n");
  });

  test("a wrong command line is a JSON object too", async () => {
    const { stdout, code } = await hadal(["sing", "--json", "--times", "0"]);
    assert.equal(code, 2);
    assert.equal(JSON.parse(stdout).error.code, "usage.value");
  });
});

describe("an error", () => {
  test("of the world shows its message without a stack and returns 1", async () => {
    const error = new OperationalError("data.missing", "song.txt is missing");
    const ending = await hadal(["sing"], { run: failing(error) });
    assert.deepEqual([ending.code, ending.stderr], [1, "error: song.txt is missing\n"]);
  });

  test("of ours shows its stack and its causes, asks for a report and returns 70", async () => {
    const run: Run<typeof sing> = async () => {
      try {
        invariant(false, "two choirs in one room");
      } catch (cause) {
        throw new TypeError("no song", { cause });
      }
    };
    const { code, stderr } = await hadal(["sing"], { run });
    assert.equal(code, 70);
    assert.match(stderr, /internal error: TypeError: no song\n +at .*main\.test\.ts/);
    assert.match(stderr, /caused by: InvariantError: two choirs in one room/);
    assert.match(stderr, /Please report it/);
  });

  test("that is not an Error is still reported", async () => {
    const { code, stderr } = await hadal(["sing"], { run: failing("boo") });
    assert.equal(code, 70);
    assert.match(stderr, /internal error: boo/);
  });
});

describe("an interruption", () => {
  test("ends the process at once where the verb did not ask otherwise", async () => {
    const run: Run<typeof sing> = async (_, { interruption }) => interruption.receive("SIGINT");
    const { exits, code } = await hadal(["sing"], { run });
    assert.deepEqual([exits, code], [[130], 130]);
  });

  test("lets an orderly verb finish, then returns 130", async () => {
    const run: Run<typeof sing> = async (_, { interruption, output }) => {
      const signal = interruption.orderly();
      interruption.receive("SIGINT");
      assert.equal(signal.aborted, true);
      output.line("last verse");
    };
    const { exits, code, stdout } = await hadal(["sing"], { run });
    assert.deepEqual({ exits, code, stdout }, { exits: [], code: 130, stdout: "last verse\n" });
  });

  test("ends an orderly verb at once when it comes twice", async () => {
    const run: Run<typeof sing> = async (_, { interruption }) => {
      interruption.orderly();
      interruption.receive("SIGTERM");
      interruption.receive("SIGTERM");
    };
    assert.deepEqual((await hadal(["sing"], { run })).exits, [143]);
  });

  test("hides the AbortError it causes, but no other error", async () => {
    const after = (fail: (signal: AbortSignal) => void): Run<typeof sing> => {
      return async (_: unknown, { interruption }: Context) => {
        const signal = interruption.orderly();
        interruption.receive("SIGINT");
        fail(signal);
      };
    };
    const aborted = await hadal(["sing"], { run: after((signal) => signal.throwIfAborted()) });
    assert.deepEqual([aborted.code, aborted.stderr], [130, ""]);
    const full = new OperationalError("run.disk-full", "the disk is full");
    const failed = await hadal(["sing"], {
      run: after(() => {
        throw full;
      }),
    });
    assert.deepEqual([failed.code, failed.stderr], [1, "error: the disk is full\n"]);
  });
});

describe("colour", () => {
  const run: Run<typeof sing> = async (_, { output }) => {
    output.table(
      [
        ["verse", "beats"],
        ["one", "4"],
        ["two", "16"],
      ],
      ["left", "right"],
    );
    output.warn("flat");
  };

  test("stays away from files and pipes", async () => {
    const { stdout, stderr } = await hadal(["sing"], { run });
    assert.equal(stdout, "verse  beats\none        4\ntwo       16\n");
    assert.equal(stderr, "warning: flat\n");
  });

  test("appears on a terminal, but not under NO_COLOR or on a dumb one", async () => {
    const colourCode = "\x1b[";
    const { stdout, stderr } = await hadal(["sing"], { run, isTTY: true });
    assert.ok(stdout.includes(colourCode) && stderr.includes(colourCode));
    for (const env of [{ NO_COLOR: "1" }, { TERM: "dumb" }]) {
      const plain = await hadal(["sing"], { run, isTTY: true, env });
      assert.ok(!(plain.stdout + plain.stderr).includes(colourCode), JSON.stringify(env));
    }
  });
});
