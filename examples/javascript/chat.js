// The chat page. goim.js implements the protocol.
"use strict";

const byId = (id) => document.getElementById(id);
const parameters = new URLSearchParams(location.search);
const host = location.hostname || "127.0.0.1";
const random = (bytes) =>
  [...crypto.getRandomValues(new Uint8Array(bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

// The maximum number of entries in the chat and in the list of packets.
const LOG_MAX = 500;
const WIRE_MAX = 300;

// The stage: the speed of comments, the lanes, and the longest wait for a lane; after that a
// comment is skipped.
const PIXELS_PER_SECOND = 105;
const LANE_PIXELS = 25;
const lanesFreeAt = [0, 0, 0, 0];
const LANE_WAIT_MAX = 3;

/** The operation of packets to the backend. */
const UPSTREAM = 1100;

const me = {
  name: parameters.get("name") || `guest-${random(2)}`,
  mid: Number(parameters.get("mid")) || 100 + Math.floor(Math.random() * 900),
  key: parameters.get("key") || `web-${random(4)}`,
};
const wsUrl = parameters.get("ws") || `ws://${host}:3102/sub`;
const httpUrl = parameters.get("http") || `http://${host}:3111`;

/** The kinds of pushes. A packet does not contain its kind, so each has a different operation here. */
const AUDIENCES = {
  room: { operation: 1000, title: "room", path: () => `room?operation=1000&${roomQuery()}` },
  mid: { operation: 1001, title: "member", path: () => `mids?operation=1001&mids=${me.mid}` },
  key: { operation: 1002, title: "device", path: () => `keys?operation=1002&keys=${encodeURIComponent(me.key)}` },
  all: { operation: 1003, title: "everybody", path: () => "all?operation=1003" },
};

const client = new Goim.Client({
  url: wsUrl,
  token: {
    mid: me.mid, key: me.key, platform: "web", room_id: parameters.get("room") || "live://1000",
    accepts: Object.values(AUDIENCES).map(({ operation }) => operation),
  },
  // More frequent than necessary, so that the online count is current. Short delays, because this
  // is a demo.
  heartbeatInterval: 10_000,
  backoff: { baseDelay: 500, maxDelay: 10_000 },
});

/** Creates an element with text. Messages are never parsed as HTML. */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

/** Appends to a list and scrolls to the end, unless the reader has scrolled up. */
function append(list, entry, entriesMax) {
  const following = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(entry);
  while (list.children.length > entriesMax) list.firstChild.remove();
  if (following) list.scrollTop = list.scrollHeight;
}

const note = (text) => append(byId("log"), element("li", "note", text), LOG_MAX);

/** Parses a message. This page pushes JSON with a name; `curl -d hello` pushes plain text. */
function readMessage(text) {
  try {
    const { from, text: body } = JSON.parse(text);
    if (typeof from === "string" && typeof body === "string") return { from, body };
  } catch { /* plain text */ }
  return { from: "curl", body: text };
}

function showMessage({ operation, text }) {
  const { from, body } = readMessage(text);
  const audience = Object.values(AUDIENCES).find((candidate) => candidate.operation === operation);
  const face = element("span", "face", [...from][0]?.toUpperCase() ?? "?");
  face.style.setProperty("--hue", [...from].reduce((sum, char) => (sum * 31 + char.codePointAt(0)) % 360, 7));
  const who = element("span", "who", element("b", "", from), new Date().toTimeString().slice(0, 8));
  if (!audience) who.append(element("span", "badge", `operation ${operation}`));
  else if (audience !== AUDIENCES.room) who.append(element("span", `badge ${audience.title}`, audience.title));
  const entry = element("li", from === me.name ? "mine" : "", face, who, element("span", "text", body));
  append(byId("log"), entry, LOG_MAX);
  fly(body);
}

/** Animates a message across the stage, like a comment over a live video. */
function fly(text) {
  const stage = byId("stage");
  const now = performance.now() / 1000;
  const lane = lanesFreeAt.indexOf(Math.min(...lanesFreeAt));
  const wait = Math.max(0, lanesFreeAt[lane] - now);
  if (document.hidden || !stage.clientWidth || wait > LANE_WAIT_MAX) return;
  const comment = element("span", "", text.slice(0, 80));
  comment.onanimationend = () => comment.remove();
  stage.append(comment);
  // All have the same speed, so a comment never reaches the one before it in the lane.
  lanesFreeAt[lane] = now + wait + (comment.clientWidth + 40) / PIXELS_PER_SECOND;
  comment.style.top = `${8 + LANE_PIXELS * lane}px`;
  comment.style.animationDelay = `${wait}s`;
  comment.style.animationDuration = `${(stage.clientWidth + comment.clientWidth) / PIXELS_PER_SECOND}s`;
  comment.style.setProperty("--width", `${stage.clientWidth}px`);
}

const NAMES = new Map(Object.entries(Goim.Operation).map(([name, operation]) =>
  [operation, name.toLowerCase().replaceAll("_", " ")]));

function showPacket({ sent, packet }) {
  showOnWire(sent ? "sent" : "", sent ? "↑" : "↓", packet);
  if (packet.operation !== Goim.Operation.BATCH) return;
  for (const inner of Goim.decode(packet.body)) showOnWire("inner", "·", inner);
}

function showOnWire(className, mark, { operation, sequence, body, text }) {
  const { BATCH, HEARTBEAT_REPLY } = Goim.Operation;
  const preview = [BATCH, HEARTBEAT_REPLY].includes(operation) ? "" : text.slice(0, 60);
  const name = NAMES.get(operation) ?? (className === "inner" ? "push" : "backend");
  append(byId("wire"), element("li", className, element("span", "", mark), element("span", "", String(operation)),
    element("span", "", `${name} `, element("small", "", preview)),
    element("small", "", `${16 + body.length} B`, sequence ? ` #${sequence}` : "")), WIRE_MAX);
}

function setStatus(state, text) {
  byId("status").dataset.state = state;
  byId("status").textContent = text;
}

function roomQuery() {
  const [type, room] = client.room.split(/:\/\/(.*)/s);
  return `type=${encodeURIComponent(type)}&room=${encodeURIComponent(room ?? "")}`;
}

/** Returns a command for a terminal. Single quotes in the body are escaped for the shell. */
const curl = (audience, body) =>
  `curl -d '${body.replaceAll("'", `'\\''`)}' '${httpUrl}/goim/push/${AUDIENCES[audience].path()}'`;

let shownAudience = "room";

function showRoom() {
  byId("stage").dataset.room = client.room;
  byId("room").value = client.room;
  byId("audiences").replaceChildren(...Object.entries(AUDIENCES).map(([name, { title }]) => {
    const tab = element("button", "small", title);
    tab.ariaPressed = String(name === shownAudience);
    tab.onclick = () => { shownAudience = name; showRoom(); };
    return tab;
  }));
  byId("push").textContent = curl(shownAudience, "hello");
}

byId("copy").onclick = async ({ target: copy }) => {
  const copied = await navigator.clipboard.writeText(byId("push").textContent).then(() => true, () => false);
  copy.textContent = copied ? "Copied" : "Not allowed";
  setTimeout(() => { copy.textContent = "Copy"; }, 1200);
};

let countdown;
client.addEventListener("open", ({ detail }) => {
  clearInterval(countdown);
  setStatus("open", "connected");
  note(detail.attempt ? `back in ${client.room} after ${detail.attempt} attempts` : `you are in ${client.room}`);
});
client.addEventListener("close", ({ detail }) => {
  clearInterval(countdown);
  // Consecutive failed attempts are one loss.
  if (byId("status").dataset.state === "open") note(`connection lost: ${detail.reason}`);
  const end = performance.now() + detail.retryIn;
  const show = () => setStatus("closed", `reconnecting in ${Math.max(0, (end - performance.now()) / 1000).toFixed(1)} s`);
  countdown = setInterval(show, 100);
  show();
  byId("figures").textContent = "";
});
client.addEventListener("heartbeat", ({ detail }) => byId("figures").replaceChildren(
  element("b", "", String(detail.online)), " in the room · ", element("b", "", detail.roundTrip.toFixed(1)), " ms"));
client.addEventListener("message", ({ detail }) => showMessage(detail));
client.addEventListener("packet", ({ detail }) => showPacket(detail));

// Without API keys the server accepts pushes only from its own machine; browsers send the page's
// origin.
const mayPush = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);

byId("compose").onsubmit = async (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  const audience = byId("audience").value;
  if (!text) return;
  byId("text").value = "";
  try {
    if (audience === "upstream") {
      const since = performance.now();
      const reply = await client.send(UPSTREAM, text);
      const elapsed = (performance.now() - since).toFixed(1);
      note(`the backend answered ${reply.text ? `“${reply.text}”` : "nothing"} in ${elapsed} ms`);
      return;
    }
    const body = JSON.stringify({ from: me.name, text });
    if (!mayPush) {
      note(`This page must not push by itself. Use a terminal:\n${curl(audience, body)}`);
      return;
    }
    // The response cannot be read, because goim's HTTP API has no CORS headers. The message itself
    // confirms it.
    await fetch(`${httpUrl}/goim/push/${AUDIENCES[audience].path()}`, { method: "POST", mode: "no-cors", body });
  } catch (error) {
    note(`not sent: ${error.message}`);
  }
};

byId("you").onsubmit = async (event) => {
  event.preventDefault();
  const room = byId("room").value.trim();
  if (!room || room === client.room) return;
  try {
    const moved = client.join(room);
    showRoom();
    await moved;
    note(client.ready ? `you are in ${client.room}` : `you will be in ${client.room}`);
  } catch (error) {
    note(`not moved: ${error.message}`);
  }
};

byId("url").textContent = wsUrl;
byId("mid").textContent = `${me.name}, mid ${me.mid}`;
byId("key").textContent = me.key;
showRoom();
client.connect();
