/**
 * @file The communicator over any transport: members, channels, checks at the door.
 *
 * A message's tag is its communicator's context and its channel. Contexts are numbers on which the
 * members of a split agree: one more than any of them has used, so that two communicators which
 * share two ranks never share a context.
 */
import { assert, defined } from "../../base/errors.ts";
import { ceilDiv, isIntegerIn } from "../../base/integers.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import { elementCount, isContiguous, makeTensor, type Tensor } from "../../tensor/tensor.ts";
import {
  allOf,
  exchange,
  InOrder,
  type Lane,
  type Part,
  ReduceScatterRounds,
  Turns,
} from "./collectives.ts";
import {
  type AllToAll,
  type Backend,
  type Communicator,
  type Judged,
  MAX_CHANNELS,
  type Operation,
  type Reduction,
  USER_CHANNELS,
} from "./communicator.ts";
import { Scratch } from "./scratch.ts";
import { Engine, MAX_TAGS, type Transport } from "./transport.ts";

const MAX_CONTEXTS = MAX_TAGS / MAX_CHANNELS;
/** What `split` sends: colour or −1, key, the next context. */
const SPLIT_WORDS = 3;
const NO_COLOUR = -1;

const COLLECTIVE_CHANNEL = {
  exchange: 0,
  reduce: 1,
  gather: 2,
  broadcast: 3,
  barrier: 4,
  split: 5,
} as const;

interface Membership {
  readonly engine: Engine;
  readonly scratch: Scratch;
  readonly name: string;
  readonly context: number;
  /** World rank of each member. */
  readonly members: readonly number[];
}

/** The communicator of all ranks. */
export function worldOf(transport: Transport): Communicator {
  return new MemberCommunicator({
    engine: new Engine(transport),
    scratch: new Scratch(transport.memory),
    name: "world",
    context: 0,
    members: Array.from({ length: transport.size }, (_, rank) => rank),
  });
}

class MemberCommunicator implements Communicator {
  readonly name: string;
  readonly rank: number;
  readonly size: number;
  readonly #membership: Membership;
  readonly #turns = new Turns();
  #group: Operation[] | null = null;

  constructor(membership: Membership) {
    const { name, members, engine } = membership;
    this.name = name;
    this.size = members.length;
    this.rank = members.indexOf(engine.transport.rank);
    assert(this.rank >= 0, `${name}: this rank is not a member`);
    this.#membership = membership;
  }

  get backend(): Backend {
    return this.#membership.engine.transport.backend;
  }

  send(source: Tensor, to: number, channel = 0): Operation {
    const { engine } = this.#membership;
    const message = { ...this.#address(to, channel), ...this.#partOf(source) };
    return this.#issued(engine.operationOf([engine.transport.send(message)]));
  }

  receive(target: Tensor, from: number, channel = 0): Operation {
    const { engine } = this.#membership;
    const message = { ...this.#address(from, channel), ...this.#partOf(target) };
    return this.#issued(engine.operationOf([engine.transport.receive(message)]));
  }

  group(issue: () => void): Operation {
    assert(this.#group === null, `${this.name}: groups do not nest`);
    const operations: Operation[] = [];
    this.#group = operations;
    try {
      issue();
    } finally {
      this.#group = null;
    }
    return this.#membership.engine.join(operations);
  }

  allToAll({ source, sendCounts, target, receiveCounts }: AllToAll): Operation {
    const sends = this.#split(source, sendCounts, "sendCounts");
    const receives = this.#split(target, receiveCounts, "receiveCounts");
    assert(source.dtype === target.dtype, `${source.dtype} into ${target.dtype}`);
    return this.#exchange("exchange", sends, receives);
  }

  reduceScatter(
    source: Tensor,
    target: Tensor,
    reduction: Reduction,
    counts: readonly number[] = this.#equalParts(target),
  ): Operation {
    this.#assertParts(target, source, counts);
    const call = {
      dtype: source.dtype,
      source: this.#partOf(source).byteOffset,
      shares: counts,
      target: this.#partOf(target).byteOffset,
      reduction,
    };
    const rounds = new ReduceScatterRounds(this.#lane("reduce"), call);
    return this.#issued(this.#membership.engine.start(this.#turns.add(rounds)));
  }

  allGather(
    source: Tensor,
    target: Tensor,
    counts: readonly number[] = this.#equalParts(source),
  ): Operation {
    this.#assertParts(source, target, counts);
    const part = this.#partOf(source);
    const receives = this.#split(target, counts, "the gathered counts");
    return this.#exchange(
      "exchange",
      receives.map(() => part),
      receives,
    );
  }

  allReduce(source: Tensor, target: Tensor, reduction: Reduction): Operation {
    const { engine } = this.#membership;
    assert(source.dtype === target.dtype, `${source.dtype} into ${target.dtype}`);
    const count = elementCount(source);
    assert(count === elementCount(target), `${count} elements into ${elementCount(target)}`);
    const share = ceilDiv(count, this.size);
    const shares = this.#membership.members.map((_, index) =>
      Math.max(0, Math.min(share, count - index * share)),
    );
    const parts = this.#split(target, shares, "shares");
    const mine = parts[this.rank]!;
    const rounds = new ReduceScatterRounds(this.#lane("reduce"), {
      dtype: source.dtype,
      source: this.#partOf(source).byteOffset,
      shares,
      target: mine.byteOffset,
      reduction,
    });
    const gather = () =>
      allOf(
        exchange(
          this.#lane("gather"),
          parts.map(() => mine),
          parts,
        ),
      );
    return this.#issued(engine.start(this.#turns.add(new InOrder(rounds, gather))));
  }

  broadcast(tensor: Tensor, root: number): Operation {
    assert(isIntegerIn(root, 0, this.size - 1), `root (${root}) of ${this.size} ranks`);
    const part = this.#partOf(tensor);
    const isRoot = this.rank === root;
    const { members } = this.#membership;
    const sends = members.map((_, index) => (isRoot && index !== root ? part : null));
    const receives = members.map((_, index) => (!isRoot && index === root ? part : null));
    return this.#exchange("broadcast", sends, receives);
  }

  barrier(): Operation {
    const nothing = this.#membership.members.map((_, index) =>
      index === this.rank ? null : { byteOffset: 0, byteLength: 0 },
    );
    return this.#exchange("barrier", nothing, nothing);
  }

  split(colour: number | null, key: number, name: string): Communicator | null {
    const { engine, scratch, members } = this.#membership;
    assert(colour === null || isIntegerIn(colour, 0, 2 ** 30), `colour (${colour})`);
    assert(isIntegerIn(key, -(2 ** 30), 2 ** 30), `key (${key})`);
    const { memory } = engine.transport;
    const bytes = (this.size + 1) * SPLIT_WORDS * 4;
    const place = scratch.take(bytes);
    const mine = makeTensor(memory, "i32", [SPLIT_WORDS], place);
    const all = makeTensor(memory, "i32", [this.size, SPLIT_WORDS], place + SPLIT_WORDS * 4);
    memory.i32.set([colour ?? NO_COLOUR, key, engine.nextContext], place / 4);
    this.#exchange(
      "split",
      members.map(() => this.#partOf(mine)),
      this.#split(
        all,
        members.map(() => SPLIT_WORDS),
        "split",
      ),
    ).wait();
    const words = memory.i32.slice(
      all.byteOffset / 4,
      all.byteOffset / 4 + this.size * SPLIT_WORDS,
    );
    scratch.giveBack(place, bytes);
    const answers = members.map((world, index) => ({
      world,
      index,
      colour: words[index * SPLIT_WORDS]!,
      key: words[index * SPLIT_WORDS + 1]!,
      nextContext: words[index * SPLIT_WORDS + 2]!,
    }));
    const context = Math.max(...answers.map(({ nextContext }) => nextContext));
    assert(context < MAX_CONTEXTS, `more than ${MAX_CONTEXTS} communicators`);
    engine.nextContext = context + 1;
    if (colour === null) return null;
    const chosen = answers
      .filter((answer) => answer.colour === colour)
      .toSorted((a, b) => a.key - b.key || a.index - b.index);
    return new MemberCommunicator({
      engine,
      scratch,
      name,
      context,
      members: chosen.map(({ world }) => world),
    });
  }

  watch(judged: Judged): void {
    this.#membership.engine.transport.watch(judged);
  }

  tick(): void {
    this.#membership.engine.transport.tick();
  }

  #exchange(
    channel: keyof typeof COLLECTIVE_CHANNEL,
    sends: readonly (Part | null)[],
    receives: readonly (Part | null)[],
  ): Operation {
    const tickets = exchange(this.#lane(channel), sends, receives);
    return this.#issued(this.#membership.engine.operationOf(tickets));
  }

  #issued(operation: Operation): Operation {
    this.#group?.push(operation);
    return operation;
  }

  #lane(channel: keyof typeof COLLECTIVE_CHANNEL): Lane {
    const { engine, scratch, members, context } = this.#membership;
    const tag = context * MAX_CHANNELS + USER_CHANNELS + COLLECTIVE_CHANNEL[channel];
    return { engine, scratch, rank: this.rank, members, tag };
  }

  #address(peer: number, channel: number): { peer: number; tag: number } {
    const { members, context } = this.#membership;
    assert(isIntegerIn(peer, 0, this.size - 1), `rank ${peer} of ${this.size}`);
    assert(isIntegerIn(channel, 0, USER_CHANNELS - 1), `channel (${channel})`);
    return { peer: defined(members[peer], "a member"), tag: context * MAX_CHANNELS + channel };
  }

  #partOf(tensor: Tensor): Part {
    assert(tensor.memory === this.#membership.engine.transport.memory, "a tensor of this rank");
    assert(isContiguous(tensor), "tensors are sent and received without gaps");
    const byteLength = elementCount(tensor) * DTYPE_BYTES[tensor.dtype];
    return { byteOffset: tensor.byteOffset, byteLength };
  }

  /** Consecutive parts of a tensor, `counts` elements each. */
  #split(tensor: Tensor, counts: ArrayLike<number>, what: string): Part[] {
    assert(counts.length === this.size, `${what}: ${counts.length} for ${this.size} ranks`);
    const bytes = DTYPE_BYTES[tensor.dtype];
    const { byteOffset, byteLength } = this.#partOf(tensor);
    let next = byteOffset;
    const parts: Part[] = [];
    for (let index = 0; index < counts.length; index++) {
      const part = { byteOffset: next, byteLength: counts[index]! * bytes };
      next += part.byteLength;
      parts.push(part);
    }
    assert(next === byteOffset + byteLength, `${what} must add up to the tensor's elements`);
    return parts;
  }

  /** A part like this one from every rank. */
  #equalParts(part: Tensor): number[] {
    return this.#membership.members.map(() => elementCount(part));
  }

  #assertParts(part: Tensor, whole: Tensor, counts: readonly number[]): void {
    assert(part.dtype === whole.dtype, `${part.dtype} and ${whole.dtype}`);
    assert(counts.length === this.size, `${counts.length} counts for ${this.size} ranks`);
    const mine = counts[this.rank];
    assert(elementCount(part) === mine, `${elementCount(part)} elements of a part, not ${mine}`);
    const expected = counts.reduce((sum, count) => sum + count, 0);
    assert(elementCount(whole) === expected, `${elementCount(whole)} elements, not ${expected}`);
  }
}
