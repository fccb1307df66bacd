/** @file Where this user's programs keep what can be made again. */
import { homedir } from "node:os";
import { join } from "node:path";

type Environment = Readonly<Record<string, string | undefined>>;

/** A folder of that name for Hadal, by the platform's custom; it may not exist yet. */
export function cacheFolder(
  name: string,
  env: Environment,
  platform: NodeJS.Platform = process.platform,
): string {
  return join(userFolder(env, platform), "hadal", name);
}

function userFolder(env: Environment, platform: NodeJS.Platform): string {
  const { XDG_CACHE_HOME: chosen, LOCALAPPDATA: local } = env;
  if (chosen !== undefined && chosen !== "") return chosen;
  if (platform === "win32" && local !== undefined && local !== "") return local;
  if (platform === "darwin") return join(homedir(), "Library", "Caches");
  return join(homedir(), ".cache");
}
