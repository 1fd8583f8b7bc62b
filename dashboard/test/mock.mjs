// A gateway that only pretends: the page under the policy it has to live under, scripted states, and
// answers that can be made to go wrong. `node test/mock.mjs` serves it for people on port 8099.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { COMPONENT, STATES } from "./states.mjs";

export const POLICY =
  "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; " +
  "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'";

const page = new URL("../dist/index.html", import.meta.url);

export class Mock {
  state = "healthy";
  /** A token that is needed, and one that may look only. */
  token = "";
  lookingToken = "";
  /** Whether the stream can be had, whether it says anything, and whether anything answers. */
  streams = true;
  silent = false;
  away = false;
  every = 200;
  /** Somebody else changes the rollout before the next order. */
  faster = false;
  /** Stops cannot be written down. */
  storeAway = false;
  /** What was asked for. */
  calls = [];
  #changes = {};
  #open = new Set();

  static async start(port = 0) {
    const mock = new Mock();
    mock.server = createServer((request, response) => void mock.#answer(request, response));
    await new Promise((resolve) => mock.server.listen(port, "127.0.0.1", resolve));
    mock.url = `http://127.0.0.1:${mock.server.address().port}`;
    return mock;
  }

  async stop() {
    this.server.closeAllConnections();
    await new Promise((resolve) => this.server.close(resolve));
  }

  show(state) {
    this.state = state;
    this.#changes = {};
    this.tell();
  }

  said() {
    const said = STATES[this.state](Date.now());
    if (said.flags[0]) Object.assign(said.flags[0], this.#changes);
    for (const alert of said.alerts)
      if (this.acknowledged?.has(alert.id))
        Object.assign(alert, { acknowledgedBy: "key ops", acknowledgedAt: said.now });
    return said;
  }

  /** Everybody on the stream hears at once. */
  tell() {
    if (this.silent) return;
    for (const response of this.#open)
      response.write(`event: dashboard\ndata: ${JSON.stringify(this.said())}\n\n`);
  }

  /** Streams end. */
  cut() {
    for (const response of this.#open) response.destroy();
  }

  async #answer(request, response) {
    const say = (status, body, headers = {}) => {
      response.writeHead(status, { "Content-Type": "application/json", ...headers });
      response.end(JSON.stringify(body));
    };
    const wrong = (status, code, message) => say(status, { error: { code, message } });
    const { pathname } = new URL(request.url, "http://mock");
    if (request.method === "GET" && pathname === "/dashboard") {
      const headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": POLICY,
      };
      response.writeHead(200, headers).end(readFileSync(page));
      return;
    }
    const shown = /^\/mock\/(.+)$/.exec(pathname);
    if (shown && STATES[shown[1]]) return say(200, this.show(shown[1]) ?? {});
    if (this.away) return response.destroy();
    const bearer = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1] ?? "";
    const looking = this.lookingToken !== "" && bearer === this.lookingToken;
    if (this.token && bearer !== this.token && !looking) {
      const message = bearer ? "the token is not one of this gateway's" : "a token is needed";
      return bearer === "nothing"
        ? wrong(403, "forbidden", 'the token lacks the scope "read"')
        : wrong(401, "unauthorised", message);
    }
    if (pathname === "/api/migration/dashboard/stream") return this.#stream(response, wrong);
    if (pathname === "/api/migration/dashboard") return say(200, this.said());
    let text = "";
    for await (const piece of request) text += piece;
    const body = text ? JSON.parse(text) : null;
    this.calls.push({ method: request.method, path: pathname, body, bearer });
    if (looking) return wrong(403, "forbidden", 'the token lacks the scope "admin"');
    this.#order(pathname, body, say, wrong);
  }

  #stream(response, wrong) {
    if (!this.streams)
      return wrong(404, "not_found", "there is nothing at /api/migration/dashboard/stream");
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-store" });
    this.#open.add(response);
    response.write(": hello\n\n");
    if (!this.silent) response.write(`event: dashboard\ndata: ${JSON.stringify(this.said())}\n\n`);
    const timer = setInterval(() => {
      if (!this.silent)
        response.write(`event: dashboard\ndata: ${JSON.stringify(this.said())}\n\n`);
    }, this.every);
    response.on("close", () => {
      clearInterval(timer);
      this.#open.delete(response);
    });
  }

  #order(path, body, say, wrong) {
    const acknowledged = /^\/api\/migration\/alerts\/(\w+)\/acknowledge$/.exec(path);
    if (acknowledged) {
      this.acknowledged = (this.acknowledged ?? new Set()).add(acknowledged[1]);
      return say(200, {});
    }
    const flag = this.said().flags[0];
    if (this.faster) {
      this.faster = false;
      this.#changes = {
        version: flag.version + 1,
        status: "paused",
        changedBy: "user maria",
        changedAt: Date.now(),
        reason: "I look at it",
      };
    }
    const found = this.said().flags[0];
    if (body?.version !== undefined && body.version !== found.version) {
      const message = `${COMPONENT} has version ${found.version}, not ${body.version}: look at it again, then decide`;
      return wrong(409, "version_conflict", message);
    }
    const verb = path.split("/")[3];
    const next = {
      pause: "paused",
      resume: "running",
      start: "running",
      rollback: "rolled_back",
      stop: "stopped",
      "emergency-stop": "failed",
    }[verb];
    if (verb === "advance")
      return wrong(
        409,
        "rollout_refused",
        "only a running rollout can be advanced; resume it first",
      );
    if (verb === "feature-flags")
      this.#changes = {
        ...this.#changes,
        rolloutPercentage: body.rolloutPercentage,
        effectivePercentage: body.rolloutPercentage,
      };
    const ended = ["rollback", "emergency-stop"].includes(verb)
      ? { effectivePercentage: 0, rolloutPercentage: 0, stop: body.mode ?? "drain-back" }
      : {};
    this.#changes = {
      ...this.#changes,
      ...(next ? { status: next } : {}),
      ...ended,
      version: found.version + 1,
      reason: body.reason,
      changedBy: "key ops",
      changedAt: Date.now(),
    };
    if (this.storeAway) {
      const message =
        "stopped on this node; the store is away, so the other nodes follow when it is back: keep this node up, or repeat the call there";
      return say(202, { saved: false, message });
    }
    say(200, { saved: true });
  }
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const mock = await Mock.start(Number(process.env.PORT ?? 8099));
  mock.every = 2_000;
  console.log(
    `${mock.url}/dashboard; ${mock.url}/mock/{${Object.keys(STATES).join(",")}} shows another state`,
  );
}
