/** @file What a disk tier and its thread say to each other. */
import type { StoreCounts, StoreSettings } from "./block-store.ts";

export type { StoreSettings };

export type ToThread =
  /** Send the payloads of the blocks from `start` on, until one is missing or time is up. */
  | {
      readonly kind: "load";
      readonly id: number;
      readonly salt: string;
      readonly tokens: Int32Array;
      readonly start: number;
      /** Milliseconds since 1970. */
      readonly deadline: number;
    }
  /** Say which blocks are missing; `write` then refers to blocks of these tokens. */
  | { readonly kind: "plan"; readonly salt: string; readonly tokens: Int32Array }
  | { readonly kind: "write"; readonly blockIndex: number; readonly payload: Uint8Array }
  | { readonly kind: "close" };

export type FromThread =
  | { readonly kind: "block"; readonly id: number; readonly payload: Uint8Array }
  | { readonly kind: "loadEnd"; readonly id: number }
  | { readonly kind: "planned"; readonly missing: readonly number[] }
  | { readonly kind: "written"; readonly isStored: boolean }
  /** Comes at the start and whenever they changed. */
  | { readonly kind: "counts"; readonly counts: StoreCounts };
