/** A publish, a read or a loop that failed. `code` is one of the protocol's, `closed` or `too_slow`. */
export class CrossfadeError extends Error {
  override readonly name = "CrossfadeError";
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}
