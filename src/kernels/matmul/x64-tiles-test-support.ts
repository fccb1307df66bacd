/**
 * @file The AMX instructions, emitted as AVX-512 code that does the same to tiles in memory, but
 * for the order of sums: word by word, where AMX sums the even and odd elements of 16 words apart.
 *
 * With it the whole AMX kernel (packing, loops, addresses, ragged edges) runs and is tested on a
 * processor that has AVX512_BF16 and no tiles. The state is 8 tiles of 1024
 * bytes, then the last configuration (64 bytes), then the number of releases (8 bytes).
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { bcst, type Gp, type Memory, mem, r, type Tile, zmm } from "../../codegen/x64/operands.ts";
import type { TileUnit } from "./x64-tile-core.ts";

const TILE_BYTES = 1024;
export const EMULATION_CONFIGURATION = 8192;
export const EMULATION_RELEASES = 8256;
export const EMULATION_BYTES = 8320;

/** Tile instructions over the state at `address`. They clobber zmm registers, and flags. */
export function emulatedTiles(a: X64, address: number): TileUnit {
  /** Run `body` with registers that none of `used` is, and restore them. */
  const withScratch = (used: readonly (Gp | null)[], body: (p: Gp, q: Gp) => void): void => {
    const [p = r.rax, q = r.rdx] = [r.rax, r.rdx, r.r8, r.r9].filter((gp) => !used.includes(gp));
    a.push(p);
    a.push(q);
    body(p, q);
    a.pop(q);
    a.pop(p);
  };
  const tileAt = (base: Gp, tile: Tile, at: number): Memory =>
    mem(base, tile.index * TILE_BYTES + at);
  const eachRow = (m: Memory, body: (row: Memory, tiles: Gp, at: number) => void): void =>
    withScratch([m.base, m.index], (row, tiles) => {
      a.lea(row, mem(m.base, m.displacement));
      a.mov(tiles, address);
      for (let at = 0; at < TILE_BYTES; at += 64) {
        body(mem(row), tiles, at);
        a.add(row, m.index ?? r.rax);
      }
    });
  return {
    ldtilecfg: (configuration) => {
      a.v("vmovups", [zmm(31), configuration]);
      withScratch([], (state) => {
        a.mov(state, address + EMULATION_CONFIGURATION);
        a.v("vmovups", [mem(state), zmm(31)]);
      });
    },
    tilerelease: () =>
      withScratch([], (state) => {
        a.mov(state, address + EMULATION_RELEASES);
        a.add(mem(state), 1);
      }),
    tilezero: (tile) =>
      withScratch([], (tiles) => {
        a.mov(tiles, address);
        a.v("vpxord", [zmm(31), zmm(31), zmm(31)]);
        for (let at = 0; at < TILE_BYTES; at += 64) {
          a.v("vmovups", [tileAt(tiles, tile, at), zmm(31)]);
        }
      }),
    tileloadd: (tile, source) =>
      eachRow(source, (row, tiles, at) => {
        a.v("vmovups", [zmm(31), row]);
        a.v("vmovups", [tileAt(tiles, tile, at), zmm(31)]);
      }),
    tilestored: (destination, tile) =>
      eachRow(destination, (row, tiles, at) => {
        a.v("vmovups", [zmm(31), tileAt(tiles, tile, at)]);
        a.v("vmovups", [row, zmm(31)]);
      }),
    tdpbf16ps: (sum, left, right) =>
      withScratch([], (tiles) => {
        a.mov(tiles, address);
        for (let pair = 0; pair < 16; pair++) {
          a.v("vmovups", [zmm(pair), tileAt(tiles, right, pair * 64)]);
        }
        for (let row = 0; row < 16; row++) {
          a.v("vmovups", [zmm(16), tileAt(tiles, sum, row * 64)]);
          for (let pair = 0; pair < 16; pair++) {
            const factor = bcst(tileAt(tiles, left, row * 64 + pair * 4));
            a.v("vdpbf16ps", [zmm(16), zmm(pair), factor]);
          }
          a.v("vmovups", [tileAt(tiles, sum, row * 64), zmm(16)]);
        }
      }),
  };
}
