/**
 * @file A rank of `hadal train` that hangs on a thread, or is killed under MPI: the other one ends
 * and says so, and the run is carried on. More of it in lost-ranks.nightly.ts.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { loseAndResume, prepare, skipWithoutMpi } from "./lost-ranks.fixture.ts";

let base = "";
before(() => {
  base = mkdtempSync(join(tmpdir(), "hadal-lost-"));
  prepare(base);
});
after(() => rmSync(base, { recursive: true, force: true }));

test("on threads, when the leader hangs between steps, the others end the run; it resumes", () => {
  const message = /^error: rank 0 has shown no sign of life for 6 s .*its process lives/m;
  loseAndResume({ base, ranks: "threads", rank: 0, fault: "blocks", message });
});

test("under MPI, when a rank is killed, the others end; it resumes", {
  skip: skipWithoutMpi,
}, () => {
  const message = /exited on signal 9 \(Killed\)/;
  loseAndResume({ base, ranks: "mpi", rank: 1, fault: "killed", message });
});
