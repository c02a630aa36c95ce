// The page: one WebSocket brings the newest state and image, each of which is confirmed. Buttons are
// requests of their own, so that they never wait behind images. A link may die without a word: every
// wait here has a limit, and a dead connection is left behind, not waited for.
import { curve, element, figure, number, path, rows, timing } from "/draw.js";

const at = (id) => document.getElementById(id);
const SHOWN_TICKS = 600, STALE_MS = 3000, LONGEST_PAUSE_MS = 2000;
const DEAD_MS = 8000; // the server sends at least once a second
const STOP_AFTER_MS = [0, 700, 2000, 4000]; // further attempts of one stop, each on a new connection
const STOP_MS = 5000, UNCONFIRMED_MS = 2500, REQUEST_MS = 7000; // longer than the server takes
const KEY = matchMedia("(hover: none)").matches ? "" : "Space · "; // a phone has no keys
const decoder = new TextDecoder();
let ticks = [], heardMs = 0, triedMs = 0, pauseMs = 250, lagMs = 0;
let socket = null, state = {}, curves = [];

// --- stream -------------------------------------------------------------------------------------

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const mine = (socket = new WebSocket(`${scheme}//${location.host}/stream`));
  mine.binaryType = "arraybuffer";
  triedMs = performance.now();
  mine.onmessage = async (event) => {
    if (mine !== socket) return;
    heardMs = performance.now();
    pauseMs = 250;
    await show(event.data);
    if (mine.readyState === WebSocket.OPEN) mine.send("");
  };
  mine.onclose = () => { if (mine === socket) connectAgain(); };
}

function connectAgain() {
  const old = socket;
  socket = null;
  old.close(); // over a dead link this takes long; nobody waits for it
  setTimeout(() => { findLogin(); connect(); }, pauseMs);
  pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
}

async function findLogin() {
  try { // a login that has expired shows as a redirect
    const answer = await fetch("/", { method: "HEAD", redirect: "manual", signal: AbortSignal.timeout(STALE_MS) });
    if (answer.type === "opaqueredirect") location.assign("/login");
  } catch { /* the server is not there; the next attempt will tell */ }
}

async function show(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const head = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, length)));
  const begin = 4 + length, base = buffer.byteLength - begin - head.wrist_bytes;
  state = head.state;
  lagMs = head.lag_ms ?? 0;
  if (head.ticks.length && ticks.length && head.ticks[0][0] <= ticks[ticks.length - 1][0]) ticks = [];
  ticks = ticks.concat(head.ticks).slice(-SHOWN_TICKS);
  if (base) await picture("camera", "no-camera", true, new Uint8Array(buffer, begin, base));
  if (head.wrist_bytes) await picture("wrist", "wrist-view", false, new Uint8Array(buffer, begin + base));
  render();
  if (head.training !== undefined) training(head.training);
}

// Draws an image; `other` is then hidden or shown.
async function picture(id, other, hides, bytes) {
  try {
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    const canvas = at(id);
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
      if (id === "camera") at("view").style.setProperty("--ratio", bitmap.width / bitmap.height);
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    at(other).hidden = hides;
  } catch { /* a damaged image: the next one comes */ }
}

// --- the robot ----------------------------------------------------------------------------------

function render() {
  const isTraining = state.stop_means === "training";
  document.body.dataset.mode = isTraining ? "training" : "robot";
  if (isTraining) return;
  const loop = state.loop;
  at("who").textContent = loop
    ? [loop.policy, `loop ${loop.session}`, loop.dry_run ? "dry run" : ""].filter(Boolean).join(" · ")
    : "no loop";
  chips(loop);
  camera();
  task(loop);
  stopBar(loop);
  figures(loop);
  joints();
  stages();
  holds(loop);
  facts();
  recording();
}

function chip(id, tone, text) {
  at(id).dataset.tone = tone;
  at(id).textContent = text;
}

function chips(loop) {
  const tones = { driving: "good", "dry run": "good", hold: "warn", ended: "bad", starting: "idle" };
  const words = loop && (loop.state === "hold" ? `holds: ${loop.hold}` : loop.state);
  chip("chip-loop", loop ? tones[loop.state] ?? "idle" : "idle", loop ? words : "no loop");
  const link = state.link;
  if (!link) chip("chip-link", "idle", "link");
  else if (link.connected) {
    chip("chip-link", link.silent ? "warn" : "good", link.rtt_ms === null ? "link" : `link ${number(link.rtt_ms)} ms`);
  } else chip("chip-link", "bad", "link down");
  const guard = state.guard;
  if (!guard) chip("chip-guard", "warn", "no guard");
  else if (guard.stopped !== null) chip("chip-guard", "bad", "guard: stopped");
  else chip("chip-guard", "good", "guard passes");
  const record = state.recording;
  at("chip-record").hidden = !record;
  if (record) chip("chip-record", record.recording ? "bad" : "idle", record.recording ? `recording ${number(record.seconds, 0)} s` : "recorder ready");
}

// From the camera to the eye: its age when it was sent, the way here, and the time on the screen.
function cameraAge() {
  const since = lagMs / 1000 + (performance.now() - heardMs) / 1000;
  for (const [id, name, sent] of [["camera-age", "image", state.ages_s?.camera], ["wrist-age", "wrist", state.ages_s?.wrist]]) {
    at(id).textContent = sent === undefined ? "" : `${name} ${number(sent + since)} s old`;
  }
}

function camera() {
  const drawn = state.path;
  cameraAge();
  at("camera-note").textContent = drawn?.note ?? (drawn?.points.length ? "predicted path of the gripper" : "");
  path(at("path"), drawn?.points ?? []);
  const gripper = drawn?.gripper, dot = at("gripper");
  if (gripper) {
    dot.removeAttribute("hidden");
    dot.setAttribute("cx", gripper[0] * 1000);
    dot.setAttribute("cy", gripper[1] * 750);
  } else dot.setAttribute("hidden", "");
}

function task(loop) {
  const refused = state.task?.state === "refused" ? ` – refused: ${state.task.reason}` : "";
  at("task-now").textContent = loop?.instruction ? `now: “${loop.instruction}”${refused}` : "";
}

function stopBar(loop) {
  const means = state.stop_means ?? "nothing", stop = at("stop"), stopped = state.guard?.stopped;
  stop.dataset.means = means;
  const ended = loop?.state === "ended";
  stop.querySelector("strong").textContent = means === "loop" ? "STOP LOOP" : "STOP";
  stop.querySelector("small").textContent = {
    guard: typeof stopped === "string" ? `stopped (${stopped}): nothing passes the guard` : `${KEY}the guard brakes the arm and blocks everything`,
    loop: `${KEY}no guard: stops the loop only`,
    nothing: ended ? "the loop has ended; no guard: cannot stop from here" : "no guard: cannot stop from here, use the emergency stop",
  }[means] ?? "";
  at("resume").hidden = typeof stopped !== "string";
}

function figures(loop) {
  const rate = at("rate");
  rate.textContent = loop ? number(loop.rate_hz) : "–";
  rate.append(element("small", loop?.wanted_hz ? ` of ${figure(loop.wanted_hz)} Hz` : " Hz"));
  const total = state.stages?.find((stage) => stage.name === "frame to trajectory");
  at("latency").textContent = number(total?.p50);
  at("latency").append(element("small", " ms"));
  at("lateness").textContent = number(state.lateness?.p99);
  at("lateness").append(element("small", " ms"));
  at("trajectories").textContent = loop?.trajectories ?? "–";
  timing(at("timing"), ticks, SHOWN_TICKS);
}

function track() {
  const box = element("div", undefined, "track");
  box.append(element("i", undefined, "measured"), element("i", undefined, "target"));
  return box;
}

function jointRow() {
  const row = element("tr"), cell = element("td");
  cell.append(track());
  row.append(element("td"), cell, element("td", "", "number"), element("td", "", "number"));
  return row;
}

function joints() {
  const listed = state.joints ?? [], body = at("joints").tBodies[0];
  [...rows(body, listed.length, jointRow)].forEach((row, index) => {
    const joint = listed[index], span = joint.upper_deg - joint.lower_deg;
    const share = (value) => `${Math.min(100, Math.max(0, ((value - joint.lower_deg) / span) * 100))}%`;
    const [name, bar, measured, target] = row.children;
    name.textContent = joint.name;
    mark(bar.querySelector(".measured"), joint.measured_deg, share);
    mark(bar.querySelector(".target"), joint.target_deg, share);
    measured.textContent = `${number(joint.measured_deg)}°`;
    target.textContent = joint.target_deg === null ? "–" : `${number(joint.target_deg)}°`;
  });
}

function mark(line, value, share) {
  line.hidden = value === null;
  if (value !== null) line.style.left = share(value);
}

function barRow() {
  const row = element("tr"), cell = element("td"), bar = element("div", undefined, "bar");
  bar.append(element("i"), element("b"));
  cell.append(bar);
  row.append(element("td"), cell, element("td", "", "number"));
  return row;
}

const tenths = (value) => number(value, value >= 100 ? 0 : 1);

function stages() {
  const listed = state.stages ?? [], body = at("stages").tBodies[0];
  const most = Math.max(1, ...listed.map((stage) => stage.p99 ?? stage.p50));
  [...rows(body, listed.length, barRow)].forEach((row, index) => {
    const { name, p50, p99 } = listed[index], [title, bar, value] = row.children;
    title.textContent = name;
    bar.querySelector("i").style.width = `${(p50 / most) * 100}%`;
    const line = bar.querySelector("b");
    line.hidden = p99 === null;
    line.style.left = `calc(${((p99 ?? 0) / most) * 100}% - 2px)`;
    value.textContent = p99 === null ? `${tenths(p50)} ms` : `${tenths(p50)} · ${tenths(p99)} ms`;
  });
}

function holds(loop) {
  at("hold-now").textContent = loop?.state === "hold" ? `now: ${loop.hold}${loop.detail ? `: ${loop.detail}` : ""}` : "";
  const listed = (state.holds ?? []).slice(0, 8), body = at("holds").tBodies[0];
  const most = Math.max(1, ...listed.map((hold) => hold.ticks));
  [...rows(body, listed.length, barRow)].forEach((row, index) => {
    const { reason, ticks: count } = listed[index], [title, bar, value] = row.children;
    title.textContent = reason;
    bar.querySelector("i").style.width = `${(count / most) * 100}%`;
    bar.querySelector("b").hidden = true;
    value.textContent = `${count} ticks`;
  });
}

function facts() {
  const { link, guard, machine } = state, listed = [];
  if (link) {
    listed.push(["rosbridge", `${link.address}, ${link.connected ? `up, round trip ${number(link.rtt_ms)} ms` : `down: ${link.error ?? "not connected"}`}`]);
    if (link.reconnects) listed.push(["reconnects", String(link.reconnects)]);
    if (link.silent) listed.push(["silent", link.silent]);
  }
  if (guard) {
    const does = guard.stopped !== null ? `stopped: ${guard.stopped}` : guard.driver ? `passes loop ${guard.driver}` : "passes, nobody drives";
    listed.push(["guard", does], ["passed", `${guard.passed}, re-timed ${guard.retimed}, refused ${guard.refused}`]);
  } else listed.push(["guard", "none on this connection"]);
  for (const [name, part] of Object.entries(machine?.parts ?? {})) {
    if (part && typeof part === "object") listed.push([name, `${part.state}${part.detail ? `, ${part.detail}` : ""}`]);
  }
  listed.push(["this page", `an update takes ${number(lagMs, 0)} ms, images ${at("camera").width} px wide`]);
  if (machine?.memory_gib) listed.push(["memory", `${machine.memory_gib[0]} of ${machine.memory_gib[1]} GiB`]);
  for (const gpu of machine?.gpus ?? []) listed.push(["GPU", `${gpu.use} %, ${gpu.used_gib} of ${gpu.total_gib} GiB, ${gpu.celsius} °C`]);
  const make = () => { const line = element("div"); line.append(element("dt"), element("dd")); return line; };
  [...rows(at("facts"), listed.length, make)].forEach((line, index) => {
    line.children[0].textContent = listed[index][0];
    line.children[1].textContent = listed[index][1];
  });
}

function recording() {
  const now = state.recording;
  at("record-start").disabled = !now || now.recording;
  at("record-stop").disabled = at("record-discard").disabled = !now?.recording;
  at("record-state").textContent = !now
    ? "no recorder runs"
    : now.recording
      ? `episode ${now.episode}: ${now.frames} frames, ${number(now.seconds)} s · ${now.kept} kept in ${now.folder}`
      : `ready · ${now.kept} episodes kept in ${now.folder}`;
}

// --- training -----------------------------------------------------------------------------------

function training(found) {
  at("training").hidden = !found;
  if (!found) return;
  at("run-name").textContent = found.folder;
  if (state.stop_means === "training") at("who").textContent = `training ${found.folder}`;
  const changed = found.changed_at ? new Date(found.changed_at * 1000).toLocaleTimeString() : "never";
  at("run-state").textContent = found.step === null
    ? "no update yet"
    : `update ${found.step}${found.samples ? ` · ${figure(found.samples)} steps or samples` : ""} · last one at ${changed}`;
  curves = found.curves;
  const make = () => {
    const box = element("div", undefined, "curve"), title = element("p");
    title.append(element("span"), element("strong"));
    box.append(title, element("canvas"));
    return box;
  };
  rows(at("curves"), curves.length, make);
  drawCurves();
  videos(found.videos);
}

function drawCurves() {
  curves.forEach((each, index) => {
    const box = at("curves").children[index], isShare = each.unit === "share";
    box.querySelector("span").textContent = each.title;
    box.querySelector("strong").textContent = isShare ? `${(each.last * 100).toFixed(0)} %` : `${figure(each.last)} ${each.unit}`;
    const canvas = box.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${each.title} over updates, newest ${box.querySelector("strong").textContent}`);
    curve(canvas, each.points, isShare);
  });
}

function videos(listed) {
  at("videos-title").hidden = !listed.length;
  const known = new Map([...at("videos").children].map((box) => [box.dataset.name, box]));
  at("videos").replaceChildren(...listed.map(({ name, title }) => {
    if (known.has(name)) return known.get(name);
    const box = element("div"), video = element("video");
    box.dataset.name = name;
    video.controls = true;
    video.preload = "none"; // nothing is loaded over a slow link before it is played
    video.src = `/videos/${encodeURIComponent(name)}`;
    box.append(video, element("p", title));
    return box;
  }));
}

// --- buttons and keys ---------------------------------------------------------------------------

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

async function request(url, body, limitMs) {
  const answer = await fetch(url, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    signal: AbortSignal.timeout(limitMs),
  });
  return answer.json();
}

function tell(output, tone, text) {
  output.dataset.tone = tone;
  output.textContent = text;
}

async function post(url, body, output, waiting) {
  tell(output, "", waiting);
  try {
    const { ok, text } = await request(url, body, REQUEST_MS);
    tell(output, ok ? "good" : "bad", text);
    return ok;
  } catch {
    tell(output, "bad", "no answer from the dashboard");
    return false;
  }
}

// An attempt may sit in a connection that died unnoticed, so further ones follow on new connections.
// Stopping twice is stopping once.
let stopsAsked = 0;
async function stop() {
  const mine = ++stopsAsked, output = at("stop-answer");
  const missing = "NOT CONFIRMED: no answer from the dashboard. Use the emergency stop";
  let answered = false;
  tell(output, "", "stopping…");
  pause(UNCONFIRMED_MS).then(() => { if (!answered && mine === stopsAsked) tell(output, "bad", `${missing}; still trying…`); });
  const attempts = STOP_AFTER_MS.map(async (afterMs) => {
    await pause(afterMs);
    if (answered || mine !== stopsAsked) throw new Error("not needed");
    const answer = await request("/stop", {}, STOP_MS);
    answered = true;
    return answer;
  });
  const { ok, text } = await Promise.any(attempts).catch(() => ({ ok: false, text: missing }));
  answered = true;
  if (mine === stopsAsked) tell(output, ok ? "good" : "bad", text);
}

function resume() {
  stopsAsked++; // no attempt of an earlier stop follows
  post("/resume", {}, at("stop-answer"), "resuming…");
}

const record = (word) => post("/record", { word }, at("record-answer"), "…");

at("stop").addEventListener("click", stop);
at("resume").addEventListener("click", resume);
at("record-start").addEventListener("click", () => record("start"));
at("record-stop").addEventListener("click", () => record("stop"));
at("record-discard").addEventListener("click", () => record("discard"));
let isAsking = false; // one at a time: a browser has few connections, and the stop needs one
at("task").addEventListener("submit", async (event) => {
  event.preventDefault();
  const box = at("instruction"), text = box.value;
  if (!text.trim() || isAsking) return;
  isAsking = true;
  const ok = await post("/instruction", { text }, at("task-answer"), "sent, waiting for the loop…");
  isAsking = false;
  if (ok && box.value === text) box.value = "";
});

const isTyping = (event) => event.target instanceof HTMLInputElement;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(event)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.code === "Space" && document.body.dataset.mode !== "training") {
    event.preventDefault(); // also on a focused button: Space always means stop, Enter presses
    if (!event.repeat) stop();
  } else if (event.key === "/") {
    event.preventDefault();
    at("instruction").focus();
  } else if (event.key === "r" && !event.repeat && state.recording) {
    record(state.recording.recording ? "stop" : "start");
  }
});
document.addEventListener("keyup", (event) => {
  if (event.code === "Space" && !isTyping(event)) event.preventDefault();
});

// --- a dashboard that has gone ------------------------------------------------------------------

setInterval(() => {
  const silentMs = performance.now() - heardMs, banner = at("banner");
  const isStale = silentMs > STALE_MS;
  document.body.classList.toggle("stale", isStale);
  banner.hidden = !isStale && state.loop?.state !== "ended";
  banner.textContent = isStale
    ? `No connection to the dashboard for ${(silentMs / 1000).toFixed(0)} s: what is shown is old. Connecting again… STOP may not work; use the emergency stop.`
    : "The loop has ended.";
  if (isStale) cameraAge();
  if (socket && performance.now() - Math.max(heardMs, triedMs) > DEAD_MS) connectAgain();
}, 500);
window.addEventListener("resize", drawCurves);
connect();
