/** @file What every implementation reads from a launch's slots behind those of the bands. */

import { slot } from "../kernel.ts";
import { type BandSlots, readBandSlots } from "./bands.ts";
import { QUANTIZE_TILES_AT, RETILE_AT, type TileScaleRule } from "./contract.ts";

/** The scale rule, which stands at the same slots of quantizeTiles and retile. */
export function readRule(slots: Float64Array): TileScaleRule {
  const { amaxMin, powerOfTwo } = QUANTIZE_TILES_AT;
  return { amaxMin: slot(slots, amaxMin), powerOfTwo: slot(slots, powerOfTwo) !== 0 };
}

/** The tensor that is re-tiled: as large as the one of the bands, stored and divided otherwise. */
export function readSource(slots: Float64Array): BandSlots {
  return {
    ...readBandSlots(slots),
    codesOffset: slot(slots, RETILE_AT.xOffset),
    codesRowStride: slot(slots, RETILE_AT.xRowStride),
    scalesOffset: slot(slots, RETILE_AT.xScalesOffset),
    scaleRowStride: slot(slots, RETILE_AT.xScaleRowStride),
    tileRows: slot(slots, RETILE_AT.xTileRows),
    tileColumns: slot(slots, RETILE_AT.xTileColumns),
    groupRows: slot(slots, RETILE_AT.xGroupRows),
  };
}
