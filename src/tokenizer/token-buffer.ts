/** @file A growing list of token ids in one typed array; what encoding writes to. */

/** Token ids, appended; `view` aliases them until the next append, `copy` owns. */
export class TokenBuffer {
  #ids: Int32Array<ArrayBuffer> = new Int32Array(256);
  #length = 0;

  get length(): number {
    return this.#length;
  }

  push(id: number): void {
    if (this.#length === this.#ids.length) this.#reserve(1);
    this.#ids[this.#length++] = id;
  }

  append(ids: Int32Array): void {
    if (this.#length + ids.length > this.#ids.length) this.#reserve(ids.length);
    this.#ids.set(ids, this.#length);
    this.#length += ids.length;
  }

  view(): Int32Array<ArrayBuffer> {
    return this.#ids.subarray(0, this.#length);
  }

  copy(): Int32Array<ArrayBuffer> {
    return this.#ids.slice(0, this.#length);
  }

  clear(): void {
    this.#length = 0;
  }

  #reserve(count: number): void {
    const grown = new Int32Array((this.#length + count) * 2);
    grown.set(this.view());
    this.#ids = grown;
  }
}
