// How old the data is. Pure.
//
// Two clocks are compared that nobody has set alike, so the quickest delivery counts as the measure: what
// took longer than that is old by the difference, even if it has only just arrived from a buffer.

export class Age {
  #skew: number | null = null;
  #taken: number | null = null;
  #source = "";

  /** Data that says `theirs`, heard at `ours`. Another source has another clock. */
  heard(theirs: number | null, ours: number, source: string): void {
    const taken = theirs ?? ours;
    if (source !== this.#source) [this.#source, this.#skew] = [source, null];
    this.#skew = this.#skew === null ? ours - taken : Math.min(this.#skew, ours - taken);
    this.#taken = taken;
  }

  /** In milliseconds; none before the first data. */
  at(ours: number): number | null {
    if (this.#taken === null || this.#skew === null) return null;
    return Math.max(0, ours - this.#skew - this.#taken);
  }

  /** What the gateway's clock says now. */
  theirs(ours: number): number | null {
    return this.#skew === null ? null : ours - this.#skew;
  }
}
