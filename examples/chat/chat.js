// A chat room with presence and history, on one channel. Serve the repository's root and open the page:
//
//   npm --prefix client ci && npm --prefix client run build
//   python3 -m http.server 8000
//   http://127.0.0.1:8000/examples/chat/?gateway=http://127.0.0.1:8080
import { createClient } from "../../client/dist/index.js";

const query = new URLSearchParams(location.search);
const client = createClient({ url: query.get("gateway") ?? "http://127.0.0.1:8080" });
const room = client.channel(query.get("room") ?? "chat:lobby");

const form = document.querySelector("form");
const [members, status, messages] = ["members", "status", "messages"].map((id) =>
  document.getElementById(id),
);

/** Shows a message above the older ones. Text goes in as text: nobody can send markup. */
function show({ id, data }) {
  if (document.getElementById(id)) return;
  const line = document.createElement("li");
  const author = document.createElement("strong");
  line.id = id;
  author.textContent = data.name;
  line.append(author, ` ${data.text}`);
  messages.prepend(line);
}

// What was said before comes from the log, what is said from now on from the subscription. A message
// that is in both has one id, and is shown once.
room.on("message", (_, message) => show(message));
const { events } = await room.history({ limit: 50 });
for (const event of events) if (event.name === "message") show(event);

room.presence.watch(({ members: present, count }) => {
  const names = present.map(({ state }) => state.name).join(", ");
  members.innerHTML = "<b></b> here: ";
  members.querySelector("b").textContent = count;
  members.append(names);
});

client.on("reconnecting", () => (status.textContent = "Connection lost, reconnecting …"));
client.on("resumed", () => (status.textContent = "Connected again, nothing was missed."));
client.on("reset", () => (status.textContent = "Older messages are no longer kept."));

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = form.elements.name.value.trim();
  const text = form.elements.text.value.trim();
  if (!name || !text) return;
  form.elements.text.value = "";
  room.presence.enter({ name });
  await room
    .publish({ name, text }, { name: "message" })
    .catch((error) => (status.textContent = error.message));
});
