/**
 * @file Whose turn it is: accounts share an engine evenly, and the tenants of an account share what
 * it gets.
 *
 * A tenant is named `ACCOUNT` or `ACCOUNT/USER`. An account is what somebody else has given, such
 * as an API key; a user is whatever the account says, so inventing users wins nothing from others.
 * Counted are tokens; who comes new, or has only been answered for a while, is not owed those of
 * the time before. Else a slow answer under way would save up turns for whoever has it.
 */
import { assert, defined } from "../../base/errors.ts";

/** Somebody whose sequences are in the engine. */
interface Share {
  given: number;
  numSequences: number;
}

interface AccountShare extends Share {
  readonly tenants: Map<string, Share>;
}

export class FairShares {
  readonly #accounts = new Map<string, AccountShare>();

  /** One that can be changed without changing this one. */
  copy(): FairShares {
    const copy = new FairShares();
    for (const [name, account] of this.#accounts) {
      const tenants = [...account.tenants].map(([key, share]) => [key, { ...share }] as const);
      copy.#accounts.set(name, { ...account, tenants: new Map(tenants) });
    }
    return copy;
  }

  /**
   * A sequence of the tenant comes in; `asking` are the tenants of those that wait for turns, which
   * decoding takes none of.
   */
  enter(tenant: string, asking: readonly string[]): void {
    const accounts = new Set(asking.map(accountOf));
    const account = enterAmong(this.#accounts, accountOf(tenant), accounts, (share) => ({
      ...share,
      tenants: new Map<string, Share>(),
    }));
    enterAmong(account.tenants, tenant, new Set(asking), (share) => share);
  }

  /** A sequence of the tenant goes. */
  leave(tenant: string): void {
    const { account, share } = this.#find(tenant);
    if (--share.numSequences === 0) account.tenants.delete(tenant);
    if (--account.numSequences === 0) this.#accounts.delete(accountOf(tenant));
  }

  /** Tokens were computed for the tenant. */
  give(tenant: string, numTokens: number): void {
    const { account, share } = this.#find(tenant);
    account.given += numTokens;
    share.given += numTokens;
  }

  /** The position of the one whose turn it is; of equals the first. There is one at least. */
  nextOf(tenants: readonly string[]): number {
    assert(tenants.length > 0, "somebody waits");
    let best = 0;
    for (let index = 1; index < tenants.length; index++) {
      if (this.#isServedLess(tenants[index]!, tenants[best]!)) best = index;
    }
    return best;
  }

  #isServedLess(tenant: string, other: string): boolean {
    const [ours, theirs] = [this.#find(tenant), this.#find(other)];
    if (ours.account !== theirs.account) return ours.account.given < theirs.account.given;
    return ours.share.given < theirs.share.given;
  }

  #find(tenant: string): { readonly account: AccountShare; readonly share: Share } {
    const account = defined(this.#accounts.get(accountOf(tenant)), `the account of ${tenant}`);
    return { account, share: defined(account.tenants.get(tenant), `the share of ${tenant}`) };
  }
}

/**
 * Whether one more request of the tenant's may wait beside those of `waiting`. Up to `most` do;
 * beyond, up to twice as many, whose account has less than an even part of `most`: one that fills
 * the queue keeps nobody else out.
 */
export function mayWait(tenant: string, waiting: readonly string[], most: number): boolean {
  if (waiting.length < most) return true;
  const account = accountOf(tenant);
  const accounts = waiting.map(accountOf);
  const own = accounts.filter((each) => each === account).length;
  return waiting.length < 2 * most && own < most / new Set([...accounts, account]).size;
}

function accountOf(tenant: string): string {
  const end = tenant.indexOf("/");
  return end < 0 ? tenant : tenant.slice(0, end);
}

/** Counts a sequence of the one of this name, who is made if not there yet. */
function enterAmong<S extends Share>(
  shares: Map<string, S>,
  name: string,
  asking: ReadonlySet<string>,
  make: (share: Share) => S,
): S {
  const level = levelOf(shares, asking);
  const share = shares.get(name) ?? make({ given: level, numSequences: 0 });
  shares.set(name, share);
  if (!asking.has(name)) share.given = Math.max(share.given, level);
  share.numSequences++;
  return share;
}

/** Where who begins to ask stands: with the least of those who ask, or with the most of all. */
function levelOf(shares: ReadonlyMap<string, Share>, asking: ReadonlySet<string>): number {
  const ofAsking = [...shares].flatMap(([name, { given }]) => (asking.has(name) ? [given] : []));
  if (ofAsking.length > 0) return Math.min(...ofAsking);
  return Math.max(0, ...[...shares.values()].map(({ given }) => given));
}
