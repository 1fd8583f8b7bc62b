// @vitest-environment jsdom
/** The React bindings, in a real tree, strict mode included. */
import { act, StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { expect, test } from "vitest";
import type { Client } from "../src/index.js";
import { useChannel, useConnection, usePresence } from "../src/react.js";
import { client, socket } from "./shell.js";

Object.assign(globalThis, { IS_REACT_ACT_ENVIRONMENT: true });

const got: unknown[] = [];

function Room({ client, name }: { client: Client; name: string }) {
  useChannel(client, "a", ({ data }) => got.push(`${name} ${data}`));
  const { members, count } = usePresence<{ name: string }>(client, "a", { name });
  const state = useConnection(client);
  return (
    <p>
      {state}: {count} {members.map((member) => member.state?.name).join(",")}
    </p>
  );
}

test("a component listens, sees who is there, and leaves when it goes", async () => {
  const c = client();
  const place = document.createElement("div");
  const root = createRoot(place);
  const render = (name: string) =>
    act(() =>
      root.render(
        <StrictMode>
          <Room client={c} name={name} />
        </StrictMode>,
      ),
    );
  await render("ann");
  await act(() => socket().serve());
  const members = [{ session: "m1", state: { name: "ann" } }];
  await act(() => socket().tell({ type: "presence", channel: "a", members, count: 1 }));
  expect(place.textContent).toBe("connected: 1 ann");
  await act(() => socket().event("a", 1));
  socket().said.length = 0;
  await render("bob");
  expect(socket().said).toMatchObject([{ type: "presence", state: { name: "bob" } }]);
  await act(() => socket().event("a", 2));
  expect(got).toEqual(["ann 1", "bob 2"]);
  socket().said.length = 0;
  await act(() => root.unmount());
  expect(socket().said.at(-1)).toMatchObject({ type: "unsubscribe", channel: "a" });
  c.close();
});
