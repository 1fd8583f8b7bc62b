// Events out of the bytes of a stream, for a fetch that has to send a header. Pure.

export interface Said {
  event: string;
  data: string;
}

/** Takes pieces of a stream as they come, and gives the events that are complete. */
export class Events {
  #rest = "";
  #event = "";
  #data: string[] = [];

  take(piece: string): Said[] {
    const lines = (this.#rest + piece).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    return lines.flatMap((line) => this.#line(line));
  }

  #line(line: string): Said[] {
    if (line === "") {
      const said = { event: this.#event || "message", data: this.#data.join("\n") };
      const empty = this.#data.length === 0;
      this.#event = "";
      this.#data = [];
      return empty ? [] : [said];
    }
    const [, field, value = ""] = /^([^:]*)(?::\s?(.*))?$/.exec(line) ?? [];
    if (field === "event") this.#event = value;
    if (field === "data") this.#data.push(value);
    return [];
  }
}
