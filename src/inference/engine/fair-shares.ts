/**
 * @file Whose turn it is: accounts share an engine evenly, and the tenants of an account share what
 * it gets.
 *
 * A tenant is named `ACCOUNT` or `ACCOUNT/USER`. An account is what somebody else has given, such
 * as an API key; a user is whatever the account says, so inventing users wins nothing from others.
 * Counted are tokens; who comes new is not owed those of the time before.
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

  /** A sequence of the tenant comes in. */
  enter(tenant: string): void {
    const name = accountOf(tenant);
    const account = this.#accounts.get(name) ?? {
      ...newcomer(this.#accounts),
      tenants: new Map<string, Share>(),
    };
    this.#accounts.set(name, account);
    const share = account.tenants.get(tenant) ?? newcomer(account.tenants);
    account.tenants.set(tenant, share);
    account.numSequences++;
    share.numSequences++;
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

function accountOf(tenant: string): string {
  const end = tenant.indexOf("/");
  return end < 0 ? tenant : tenant.slice(0, end);
}

function newcomer(others: ReadonlyMap<string, Share>): Share {
  const least = Math.min(...[...others.values()].map(({ given }) => given));
  return { given: Number.isFinite(least) ? least : 0, numSequences: 0 };
}
