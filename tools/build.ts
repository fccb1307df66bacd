/**
 * @file `npm run build`: what the published package runs, `dist/`, anew from `src/` (types
 * stripped, `.ts` to `.js`; what is no module is copied).
 */
import { copyFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { ROOT, runPackageProgram } from "./repository.ts";

// A file left from a source that is gone would be packed.
rmSync(join(ROOT, "dist"), { recursive: true, force: true });
const { code } = runPackageProgram("typescript/bin/tsc", ["-p", "tsconfig.build.json"], {
  show: true,
});
for (const file of ["serving/chat-page.html"]) {
  copyFileSync(join(ROOT, "src", file), join(ROOT, "dist", file));
}
process.exitCode = code;
