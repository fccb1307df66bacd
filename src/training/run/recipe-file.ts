/** @file A precision recipe from the command line: a name, or a JSON file. */
import { existsSync } from "node:fs";
import { OperationalError } from "../../base/errors.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { recipeFrom } from "../recipe/recipe-settings.ts";
import { RECIPE_NAMES } from "../recipe/recipes.ts";
import { readSettingsFile } from "./run-folder.ts";

/** The recipe of a name that there is, or that a file describes. */
export function readRecipe(nameOrFile: string): PrecisionRecipe {
  const isName = (RECIPE_NAMES as readonly string[]).includes(nameOrFile);
  if (!isName && !existsSync(nameOrFile)) {
    const names = RECIPE_NAMES.join(", ");
    const message = `${nameOrFile} is neither a recipe nor a file; give ${names} or a JSON file`;
    throw new OperationalError("config.recipe", message);
  }
  return recipeFrom(isName ? nameOrFile : readSettingsFile(nameOrFile), nameOrFile);
}
