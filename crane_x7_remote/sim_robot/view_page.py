"""The page of `sim-robot --view`; it polls /camera.jpg and /state.json."""

from __future__ import annotations

from typing import Final

PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>CRANE-X7, simulated</title>
<style>
  body { font: 16px/1.5 sans-serif; margin: 1.5rem; color: #222; background: #fafafa; }
  main { display: flex; flex-wrap: wrap; gap: 1.5rem; }
  img { width: 640px; max-width: 100%; background: #ddd; aspect-ratio: 4 / 3; }
  table { border-collapse: collapse; }
  td { padding: .1rem .8rem .1rem 0; font-variant-numeric: tabular-nums; }
  td.number { text-align: right; }
  dt { font-weight: bold; } dd { margin: 0 0 .6rem; max-width: 32rem; }
</style>
<h1>CRANE-X7, simulated</h1>
<main>
  <img id="camera" alt="camera image">
  <section>
    <dl>
      <dt>Task</dt><dd id="task">…</dd>
      <dt>Loop</dt><dd id="loop">…</dd>
      <dt>Arm</dt><dd id="arm">…</dd>
    </dl>
    <table id="joints"></table>
  </section>
</main>
<script>
const at = id => document.getElementById(id);
const camera = at("camera");
let picture = 0;
const next = () => { camera.src = "/camera.jpg?" + picture++; };
camera.onload = () => setTimeout(next, 100);
camera.onerror = () => setTimeout(next, 1000);
next();
function show(state) {
  at("task").textContent = state.task ?? "none";
  at("loop").textContent = state.loop;
  at("arm").textContent = state.arm;
  const rows = state.joints.map(joint => {
    const row = document.createElement("tr");
    const name = document.createElement("td"), value = document.createElement("td");
    name.textContent = joint.name;
    value.textContent = joint.deg.toFixed(1) + "\u00b0";
    value.className = "number";
    row.append(name, value);
    return row;
  });
  at("joints").replaceChildren(...rows);
}
async function poll() {
  try {
    show(await (await fetch("/state.json")).json());
  } catch {
    at("arm").textContent = "sim-robot does not answer";
  }
  setTimeout(poll, 300);
}
poll();
</script>
</html>
"""
