// The page: one WebSocket brings the newest state and image, each of which is confirmed; buttons are
// POST separate requests, so that they never wait behind images.
import { curve, element, figure, number, path, rows, timing } from "/draw.js";

const at = (id) => document.getElementById(id);
const SHOWN_TICKS = 600, STALE_MS = 3000, DEAD_MS = 10000, LONGEST_PAUSE_MS = 4000;
const decoder = new TextDecoder();
let ticks = [], heardMs = 0, pauseMs = 250, socket = null, state = {}, curves = [];

// --- stream -------------------------------------------------------------------------------------

function connect() {
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const mine = (socket = new WebSocket(`${scheme}//${location.host}/stream`));
  mine.binaryType = "arraybuffer";
  heardMs = Math.max(heardMs, 0);
  mine.onmessage = async (event) => {
    heardMs = performance.now();
    pauseMs = 250;
    await show(event.data);
    if (mine.readyState === WebSocket.OPEN) mine.send("");
  };
  mine.onclose = () => {
    if (mine !== socket) return;
    setTimeout(again, pauseMs);
    pauseMs = Math.min(pauseMs * 2, LONGEST_PAUSE_MS);
  };
}

async function again() {
  try { // a login that has expired shows as a redirect
    const answer = await fetch("/", { method: "HEAD", redirect: "manual" });
    if (answer.type === "opaqueredirect") location.assign("/login");
  } catch { /* the server is not there; the next attempt will tell */ }
  connect();
}

async function show(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const head = JSON.parse(decoder.decode(new Uint8Array(buffer, 4, length)));
  const image = new Uint8Array(buffer, 4 + length);
  state = head.state;
  if (head.ticks.length && ticks.length && head.ticks[0][0] <= ticks[ticks.length - 1][0]) ticks = [];
  ticks = ticks.concat(head.ticks).slice(-SHOWN_TICKS);
  if (image.length) await picture(image);
  render();
  if (head.training !== undefined) training(head.training);
}

async function picture(bytes) {
  try {
    const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/jpeg" }));
    const canvas = at("camera");
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
    at("no-camera").hidden = true;
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

function camera() {
  const age = state.ages_s.camera, drawn = state.path;
  at("camera-age").textContent = age === undefined ? "" : `image ${number(age)} s old`;
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
    guard: typeof stopped === "string" ? `stopped (${stopped}): nothing passes the guard` : "Space · the guard brakes the arm and blocks everything",
    loop: "Space · no guard: stops the loop only",
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
    value.textContent = p99 === null ? `${number(p50)} ms` : `${number(p50)} · ${number(p99)} ms`;
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

async function post(url, body, output, waiting) {
  output.dataset.tone = "";
  output.textContent = waiting;
  try {
    const answer = await fetch(url, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    const { ok, text } = await answer.json();
    output.dataset.tone = ok ? "good" : "bad";
    output.textContent = text;
    return ok;
  } catch {
    output.dataset.tone = "bad";
    output.textContent = url === "/stop" ? "NOT CONFIRMED: no answer from the dashboard. Use the emergency stop" : "no answer from the dashboard";
    return false;
  }
}

const stop = () => post("/stop", {}, at("stop-answer"), "stopping…");
const record = (word) => post("/record", { word }, at("record-answer"), "…");

at("stop").addEventListener("click", stop);
at("resume").addEventListener("click", () => post("/resume", {}, at("stop-answer"), "resuming…"));
at("record-start").addEventListener("click", () => record("start"));
at("record-stop").addEventListener("click", () => record("stop"));
at("record-discard").addEventListener("click", () => record("discard"));
at("task").addEventListener("submit", async (event) => {
  event.preventDefault();
  const box = at("instruction");
  if (box.value.trim() && await post("/instruction", { text: box.value }, at("task-answer"), "sent, waiting for the loop…")) box.value = "";
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
    ? `No connection to the dashboard for ${(silentMs / 1000).toFixed(0)} s: what is shown is old. STOP may not work; use the emergency stop.`
    : "The loop has ended.";
  if (silentMs > DEAD_MS && socket?.readyState === WebSocket.OPEN) socket.close();
}, 500);
window.addEventListener("resize", drawCurves);
connect();
