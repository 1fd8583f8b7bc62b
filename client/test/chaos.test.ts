/** Whatever happens in whatever order: every event once and in order, or a word that some are gone. */
import fc from "fast-check";
import { expect, test } from "vitest";
import { World } from "./world.js";

const CHANNELS = ["a", "b"];

const action = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant("publish" as const),
      channel: fc.constantFrom(...CHANNELS),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      do: fc.constant("send" as const),
      channel: fc.constantFrom(...CHANNELS),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("move" as const),
      to: fc.constantFrom("sse" as const, "websocket" as const),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant("migrate" as const),
      to: fc.constantFrom("sse" as const, "websocket" as const),
    }),
  },
  fc.record({
    do: fc.constantFrom(
      "cut",
      "darken",
      "drain",
      "wake",
      "down",
      "up",
      "away",
      "back",
      "steady",
      "expire",
    ),
  }),
  fc.record({
    do: fc.constant("websockets" as const),
    fate: fc.constantFrom("pass" as const, "hang" as const, "refuse" as const),
  }),
  fc.record({
    do: fc.constant("streams" as const),
    fate: fc.constantFrom("pass" as const, "hang" as const, "refuse" as const),
  }),
  fc.record({
    do: fc.constantFrom("forget" as const, "trim" as const),
    channel: fc.constantFrom(...CHANNELS),
  }),
  fc.record({ do: fc.constant("unavailable" as const), on: fc.boolean() }),
  fc.record({ do: fc.constant("leave" as const), channel: fc.constantFrom(...CHANNELS) }),
);

const scenario = fc.record({
  seed: fc.integer(),
  actions: fc.array(fc.tuple(fc.oneof(fc.nat(80), fc.nat(4000), fc.nat(70_000)), action), {
    maxLength: 40,
  }),
  refreshable: fc.boolean(),
});

type Action = typeof action extends fc.Arbitrary<infer A> ? A : never;

/** What was published, so that what is delivered can be compared. */
class Run {
  readonly world: World;
  keys = 0;
  left = new Set<string>();
  constructor(seed: number, refreshable: boolean) {
    this.world = new World(seed, { refreshable });
    for (const channel of CHANNELS) {
      this.world.publish(channel, "before");
      this.world.happen({ type: "want", channel, wish: {} });
    }
    // Some clients want what they may not have.
    if (seed % 2) this.world.happen({ type: "want", channel: "forbidden", wish: {} });
  }

  act(what: Action): void {
    const { world } = this;
    switch (what.do) {
      case "publish":
        return void world.publish(what.channel, "theirs");
      case "send": {
        const frame = {
          type: "publish",
          channel: what.channel,
          data: "ours",
          message_id: `own${++this.keys}`,
        } as const;
        return world.happen({ type: "request", key: this.keys, frame });
      }
      case "move":
        return world.happen({ type: "move", to: what.to, reason: "test" });
      case "migrate":
        return world.tell({
          type: "migrate",
          transport: what.to,
          within: 5000,
          reason: "rollback",
        });
      case "cut":
        return world.cut();
      case "darken":
        return world.darken();
      case "drain":
        return world.goodbye(4003, true, 800);
      case "expire":
        return world.goodbye(this.world.state.settings.refreshable ? 4002 : 4004, true, 100);
      case "wake":
        return world.happen({ type: "wake" });
      case "away":
        return world.happen({ type: "hide" });
      case "back":
        return world.happen({ type: "show" });
      case "down":
        world.up = false;
        return world.cut();
      case "up":
        world.up = true;
        return;
      case "steady":
        world.up = true;
        world.websockets = "pass";
        world.streams = "pass";
        return world.run(30_000);
      case "websockets":
        world.websockets = what.fate;
        return;
      case "streams":
        world.streams = what.fate;
        return;
      case "forget":
        return world.forget(what.channel);
      case "trim":
        return world.trim(what.channel);
      case "unavailable":
        world.unavailable = what.on;
        return;
      case "leave":
        // Somebody stops listening and begins again: what came in between is not owed.
        this.left.add(what.channel);
        world.happen({ type: "want", channel: what.channel });
        world.run(10);
        return world.happen({ type: "want", channel: what.channel, wish: {} });
    }
  }

  heal(): void {
    const { world } = this;
    world.up = true;
    world.websockets = "pass";
    world.streams = "pass";
    world.unavailable = false;
    world.happen({ type: "show" });
    world.run(180_000);
    for (const channel of CHANNELS) world.publish(channel, "after");
    world.run(60_000);
  }
}

function check({ world, keys, left }: Run): void {
  expect(world.extra, "two connections outside a move").toBeLessThanOrEqual(0);
  expect(world.state.phase, JSON.stringify(world.events)).toBe("connected");
  expect(world.living, "connections in the end").toHaveLength(1);
  for (const channel of CHANNELS) {
    const got = world.delivered.filter((message) => message.channel === channel);
    const ids = got.map(({ id }) => id);
    expect(new Set(ids).size, `${channel} has repeats: ${ids}`).toBe(ids.length);
    expect(got.at(-1)?.data, `${channel} goes on`).toBe("after");
    const told = world.events.some((event) => event.type === "reset" && event.channel === channel);
    let before = world.began.get(channel);
    for (const { position } of got) {
      if (position === before) continue;
      const [epoch, offset] = position.split("-") as [string, string];
      const [was, at] = before?.split("-") ?? [];
      if (epoch === was) {
        expect(Number(offset), `${channel} is in order`).toBeGreaterThan(Number(at));
        if (!told && !left.has(channel))
          expect(Number(offset), `${channel} has a hole`).toBe(Number(at) + 1);
      } else if (was)
        expect(told || left.has(channel), `${channel} changed its log silently`).toBe(true);
      before = position;
    }
  }
  for (let key = 1; key <= keys; key++) {
    expect(world.answers.get(key), `publish ${key}`).toMatchObject({ type: "published" });
  }
}

test("nothing is lost, nothing comes twice, and it ends connected once", () => {
  fc.assert(
    fc.property(scenario, ({ seed, actions, refreshable }) => {
      const run = new Run(seed, refreshable);
      for (const [after, what] of actions) {
        run.world.run(after);
        run.act(what as Action);
      }
      run.heal();
      check(run);
    }),
    { numRuns: Number(process.env.CHAOS_RUNS ?? 400) },
  );
}, 120_000);
