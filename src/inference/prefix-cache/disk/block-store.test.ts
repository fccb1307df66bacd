/** @file The folder of latent blocks: torn, full, foreign, shared, and written by the killed. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { defined } from "../../../base/errors.ts";
import { siblingModule } from "../../../base/modules.ts";
import { Random } from "../../../base/random.ts";
import { BLOCK_TOKENS } from "../latent-block.ts";
import { type BlockKey, OVERHEAD_BYTES } from "./block-file.ts";
import { BlockStore, type StoreSettings } from "./block-store.ts";
import { DiskTier } from "./disk-tier.ts";
import { type BlockFileSystem, SYSTEM_FILES } from "./file-system.ts";

const PAYLOAD_BYTES = 4000;
const FILE_BYTES = OVERHEAD_BYTES + PAYLOAD_BYTES;

const folders: string[] = [];
function settings(changes: Partial<StoreSettings> = {}): StoreSettings {
  const folder = mkdtempSync(join(tmpdir(), "hadal-blocks-"));
  folders.push(folder);
  return {
    folder,
    modelIdentity: "model",
    payloadBytes: PAYLOAD_BYTES,
    bytesMax: 2 ** 30,
    ...changes,
  };
}
after(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

function tokensOf(seed: number, numBlocks: number): Int32Array {
  const random = new Random(seed);
  return Int32Array.from({ length: numBlocks * BLOCK_TOKENS }, () => random.below(130_000));
}

function payloadOf(seed: number, numBytes = PAYLOAD_BYTES): Uint8Array<ArrayBuffer> {
  const random = new Random(seed);
  return Uint8Array.from({ length: numBytes }, () => random.below(256));
}

function keysOf(store: BlockStore, seed: number, numBlocks = 1, salt = ""): BlockKey[] {
  return [...store.keys(salt, tokensOf(seed, numBlocks))];
}

function keyOf(store: BlockStore, seed: number, salt = ""): BlockKey {
  return defined(keysOf(store, seed, 1, salt)[0], "a key");
}

/** Paths of all files of a folder. */
function filesOf(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => !entry.isDirectory())
    .map((entry) => join(entry.parentPath, entry.name));
}

describe("a block store", () => {
  it("gives back what it stored, also after a restart and to another process", () => {
    const given = settings();
    const store = new BlockStore(given);
    const other = new BlockStore(given);
    const keys = keysOf(store, 1, 3);
    for (const [i, key] of keys.entries()) assert.ok(store.store(key, payloadOf(i)));
    for (const reader of [store, other, new BlockStore(given)]) {
      for (const [i, key] of keys.entries()) assert.deepEqual(reader.load(key), payloadOf(i));
    }
    assert.equal(new BlockStore(given).counts.files, 3);
    assert.equal(filesOf(given.folder).length, 3);
  });

  it("finds nothing under another salt, model, prefix or payload length", () => {
    const given = settings();
    const store = new BlockStore(given);
    store.store(keyOf(store, 1), payloadOf(1));
    const [, second] = keysOf(store, 1, 2);
    store.store(defined(second, "a key"), payloadOf(2));
    assert.equal(store.load(keyOf(store, 1, "someone")), null);
    const foreign = new BlockStore({ ...given, modelIdentity: "other" });
    assert.equal(foreign.load(keyOf(foreign, 1)), null);
    const shorter = new BlockStore({ ...given, payloadBytes: PAYLOAD_BYTES - 1 });
    assert.equal(shorter.load(keyOf(shorter, 1)), null);
    // The same 64 tokens as the second block, but at the start.
    const moved = [...store.keys("", tokensOf(1, 2).subarray(BLOCK_TOKENS))];
    assert.equal(store.load(defined(moved[0], "a key")), null);
    assert.equal(store.counts.corrupt, 0);
  });

  it("serves no file torn at any byte, and none with any byte changed", () => {
    const given = settings({ payloadBytes: 20 });
    const store = new BlockStore(given);
    const key = keyOf(store, 1);
    const write = (): string => {
      assert.ok(store.store(key, payloadOf(1, 20)));
      return defined(filesOf(given.folder)[0], "the file");
    };
    const whole = readFileSync(write());
    for (let length = 0; length < whole.length; length++) {
      truncateSync(write(), length);
      assert.equal(store.load(key), null, `torn at ${length}`);
      const changed = Uint8Array.from(whole);
      changed[length]! ^= 1 << (length % 8);
      writeFileSync(write(), changed);
      assert.equal(store.load(key), null, `changed at ${length}`);
    }
    assert.equal(store.counts.corrupt, 2 * whole.length);
    write();
    assert.deepEqual(store.load(key), payloadOf(1, 20));
  });

  it("serves no file under another's name, no link, and ignores what is not its own", () => {
    const given = settings();
    const store = new BlockStore(given);
    store.store(keyOf(store, 1), payloadOf(1));
    const path = defined(filesOf(given.folder)[0], "the file");
    const wrong = keyOf(store, 2);
    const place = join(path, "..", wrong.name);
    writeFileSync(place, readFileSync(path));
    assert.equal(store.load(wrong), null);
    symlinkSync(path, place);
    assert.equal(store.load(wrong), null);
    mkdirSync(join(path, "..", keyOf(store, 3).name));
    writeFileSync(join(given.folder, "README"), "hello");
    const again = new BlockStore(given);
    assert.equal(again.load(keyOf(store, 3)), null);
    assert.equal(again.store(keyOf(store, 3), payloadOf(3)), false);
    assert.match(again.counts.problem ?? "", /could not be written/);
    assert.deepEqual(again.load(keyOf(store, 1)), payloadOf(1));
    assert.equal(readFileSync(join(given.folder, "README"), "utf8"), "hello");
  });

  it("keeps within its bytes and drops what was unused for the longest time", () => {
    const given = settings({ bytesMax: 3 * FILE_BYTES + 1000 });
    const store = new BlockStore(given);
    for (const seed of [1, 2, 3]) store.store(keyOf(store, seed), payloadOf(seed));
    assert.ok(store.load(keyOf(store, 1)));
    store.store(keyOf(store, 4), payloadOf(4));
    const held = [1, 2, 3, 4].filter((seed) => store.has(keyOf(store, seed)));
    assert.deepEqual(held, [1, 3, 4]);
    // The order survives a restart, in the files' times.
    const [first] = filesOf(given.folder).filter((path) => path.endsWith(keyOf(store, 4).name));
    utimesSync(defined(first, "the file"), 1, 1);
    const smaller = new BlockStore({ ...given, bytesMax: 2 * FILE_BYTES + 1000 });
    assert.deepEqual(
      [1, 3, 4].filter((seed) => smaller.has(keyOf(smaller, seed))),
      [1, 3],
    );
    assert.ok(smaller.counts.bytes <= 2 * FILE_BYTES + 1000);
    const none = new BlockStore({ ...given, bytesMax: 0 });
    assert.equal(none.store(keyOf(none, 9), payloadOf(9)), false);
    assert.equal(filesOf(given.folder).length, 0);
  });

  it("survives a full disk at every call, leaves no temporary and tries again later", () => {
    for (const call of ["makeDirectory", "write", "rename"] as const) {
      let isFull = true;
      const refuse = (): never => {
        const error = Object.assign(new Error("ENOSPC: no space left"), { syscall: "write" });
        throw Object.assign(error, { code: "ENOSPC" });
      };
      const files: BlockFileSystem = {
        ...SYSTEM_FILES,
        [call]: (path: string, ...rest: never[]): void => {
          if (isFull) {
            // A full disk tears the file first.
            if (call === "write") writeFileSync(path, "HADAL");
            refuse();
          }
          (SYSTEM_FILES[call] as (...all: unknown[]) => void)(path, ...rest);
        },
      };
      const given = settings();
      const store = new BlockStore(given, files);
      for (let seed = 0; seed < 20; seed++) {
        assert.equal(store.store(keyOf(store, seed), payloadOf(seed)), false, call);
      }
      // Tried at 0, then after 1, 3 and 7 that were not tried.
      assert.equal(store.counts.failedWrites, 4, call);
      assert.match(store.counts.problem ?? "", /ENOSPC/);
      assert.equal(filesOf(given.folder).length, 0, call);
      isFull = false;
      let numTries = 0;
      while (!store.store(keyOf(store, 1), payloadOf(1))) numTries++;
      assert.ok(numTries <= 15, `${numTries} tries`);
      assert.equal(store.counts.problem, null);
      assert.deepEqual(store.load(keyOf(store, 1)), payloadOf(1));
    }
  });

  it("removes what the dead left half-written, and not what the living write", () => {
    const given = settings();
    const store = new BlockStore(given);
    store.store(keyOf(store, 1), payloadOf(1));
    const path = defined(filesOf(given.folder)[0], "the file");
    const temporary = (pid: number) => `${path}.${pid}-0123abcd.tmp`;
    for (const pid of [2 ** 30 + 1, process.pid]) writeFileSync(temporary(pid), "half");
    assert.equal(new BlockStore(given).counts.files, 1);
    assert.deepEqual(filesOf(given.folder).sort(), [path, temporary(process.pid)].sort());
    utimesSync(temporary(process.pid), 1, 1);
    new BlockStore(given);
    assert.deepEqual(filesOf(given.folder), [path]);
  });
});

/** A program that stores blocks in a loop until it is killed. */
const WRITER = `
  const [module, settings] = process.argv.slice(1);
  const { BlockStore } = await import(module);
  const store = new BlockStore(JSON.parse(settings));
  process.stdout.write("ready");
  for (let i = 0; ; i = (i + 1) % 40) {
    const tokens = new Int32Array(64).fill(i);
    for (const key of store.keys("", tokens)) store.store(key, new Uint8Array(4000).fill(i));
  }
`;

function killWriter(given: StoreSettings, killAfterMs: number): Promise<void> {
  const module = siblingModule("./block-store", import.meta.url).href;
  const args = ["--input-type=module", "-e", WRITER, "--", module, JSON.stringify(given)];
  const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
  child.stdout.once("data", () => setTimeout(() => child.kill("SIGKILL"), killAfterMs));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code) =>
      code === null ? resolve() : reject(new Error(`the writer ended with ${code}`)),
    );
  });
}

it("two writers on one folder, killed at random instants, leave nothing wrong", async () => {
  const seed = 7;
  const random = new Random(seed);
  // Room for half of what they write, so that both evict all the time.
  const given = settings({ bytesMax: 20 * FILE_BYTES });
  for (let round = 0; round < 3; round++) {
    await Promise.all([killWriter(given, random.below(60)), killWriter(given, random.below(60))]);
    const store = new BlockStore(given);
    assert.ok(store.counts.bytes <= given.bytesMax);
    for (let i = 0; i < 40; i++) {
      for (const key of store.keys("", new Int32Array(64).fill(i))) {
        const payload = store.load(key);
        assert.ok(payload === null || payload.every((byte) => byte === i), `seed ${seed}`);
      }
    }
    assert.equal(store.counts.corrupt, 0);
    assert.ok(filesOf(given.folder).every((path) => !path.endsWith(".tmp")));
  }
});

describe("a disk tier", () => {
  it("stores behind, fetches only what is missing, and loads from where it is asked", async () => {
    const given = settings();
    const tokens = tokensOf(3, 5);
    const fetched: number[] = [];
    const payload = (index: number) => {
      fetched.push(index);
      return payloadOf(index);
    };
    {
      await using tier = new DiskTier(given);
      const few = tokens.subarray(0, 2 * BLOCK_TOKENS + 5);
      assert.equal(await tier.store({ salt: "s", tokens: few, payload }), 2);
      assert.equal(await tier.store({ salt: "s", tokens, payload }), 5);
      assert.deepEqual(fetched, [0, 1, 2, 3, 4]);
    }
    await using tier = new DiskTier(given);
    const taken = new Map<number, Uint8Array>();
    const take = (bytes: Uint8Array, index: number) => void taken.set(index, bytes);
    const ask = { salt: "s", tokens, start: 2, budgetMs: 60_000, take };
    assert.equal(await tier.load(ask), 3);
    assert.deepEqual(taken, new Map([2, 3, 4].map((index) => [index, payloadOf(index)])));
    assert.equal(await tier.load({ ...ask, salt: "t" }), 0);
    assert.equal(await tier.load({ ...ask, budgetMs: 0 }), 0);
    assert.equal(tier.counts?.loaded, 3);
    assert.equal(taken.size, 3);
  });

  it("ends a store whose payloads are gone, and drops those beyond its queue", async () => {
    await using tier = new DiskTier(settings());
    const tokens = tokensOf(4, 3);
    const payload = (index: number) => (index < 1 ? payloadOf(index) : null);
    assert.equal(await tier.store({ salt: "", tokens, payload }), 1);
    const many = Array.from({ length: 100 }, () => tier.store({ salt: "", tokens, payload }));
    await Promise.all(many);
    assert.equal(tier.numDroppedStores, 35);
  });

  it("is merely off when its thread cannot live, and when it was closed", async () => {
    // A payload without bytes is our bug: the store's assertion ends the thread.
    const broken = new DiskTier(settings({ payloadBytes: 0 }));
    const take = () => assert.fail("there is nothing to be had");
    const ask = { salt: "", tokens: tokensOf(1, 1), start: 0, budgetMs: 60_000, take };
    assert.equal(await broken.load(ask), 0);
    assert.equal(await broken.store({ ...ask, payload: () => payloadOf(1) }), 0);
    assert.match(broken.problem ?? "", /thread died/);
    await broken.close();
    const closed = new DiskTier(settings());
    const pending = closed.load(ask);
    await closed.close();
    assert.equal(await pending, 0);
    await closed.close();
  });
});
