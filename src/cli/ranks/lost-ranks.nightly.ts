/**
 * @file Every way in which a rank of `hadal train` is lost, on threads and under MPI; each takes
 * the watchdog's six seconds.
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

const HANGS = /rank \d has shown no sign of life for 6 s .*its process lives/;
const SILENT = /nothing was heard of rank \d for 6 s; its process was killed or stopped/;

for (const rank of [0, 1]) {
  for (const fault of ["blocks", "spins"] as const) {
    test(`on threads rank ${rank} ${fault}`, () => {
      loseAndResume({ base, ranks: "threads", rank, fault, message: HANGS });
    });
    test(`under MPI rank ${rank} ${fault}`, { skip: skipWithoutMpi }, () => {
      loseAndResume({ base, ranks: "mpi", rank, fault, message: HANGS });
    });
  }
  test(`under MPI rank ${rank} is stopped`, { skip: skipWithoutMpi }, () => {
    loseAndResume({ base, ranks: "mpi", rank, fault: "stopped", message: SILENT });
  });
  test(`under MPI rank ${rank} is killed`, { skip: skipWithoutMpi }, () => {
    const message = /exited on signal 9 \(Killed\)/;
    loseAndResume({ base, ranks: "mpi", rank, fault: "killed", message });
  });
}
