// Charts on canvases, and small helpers for the page's elements. Text is only ever set as text.

const css = getComputedStyle(document.documentElement);
const colour = (name) => css.getPropertyValue(name).trim();

export function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Keeps `count` rows in a table body or another parent; `make` builds a new one.
export function rows(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make());
  return parent.children;
}

export function number(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(digits).replace(/^-(0(\.0*)?)$/, "$1");
}

// 0.0123 and 4567 with three figures, as people read them.
export function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1);
  return size >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

function prepared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const wide = Math.round(width * ratio), high = Math.round(height * ratio);
  if (canvas.width !== wide || canvas.height !== high) { canvas.width = wide; canvas.height = high; }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  return { pen, width, height };
}

// A bound that reads well: 1, 2 or 5 times a power of ten.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((bound) => bound >= value * 0.999);
}

// Ticks [number, policy ms or null, hold or null]: a point per prediction, a mark per hold.
export function timing(canvas, ticks, shown) {
  const { pen, width, height } = prepared(canvas);
  if (!width) return;
  const base = height - 12, left = 52, newest = ticks.length ? ticks[ticks.length - 1][0] : 0;
  const values = ticks.map((tick) => tick[1]).filter((value) => value !== null);
  const top = roundUp(Math.max(1, ...values));
  pen.strokeStyle = colour("--line");
  pen.fillStyle = colour("--soft");
  pen.textAlign = "right";
  for (const share of [0, 0.5, 1]) {
    const y = base - share * (base - 8);
    pen.beginPath(); pen.moveTo(left, y); pen.lineTo(width, y); pen.stroke();
    pen.fillText(`${figure(top * share)} ms`, left - 5, y + 3.5);
  }
  const place = (tick) => left + (1 - (newest - tick[0]) / shown) * (width - left - 3);
  for (const tick of ticks) {
    const x = place(tick);
    if (x < left) continue;
    if (tick[1] !== null) {
      pen.fillStyle = colour("--measured");
      pen.fillRect(x - 1, base - (tick[1] / top) * (base - 8) - 1, 2.4, 2.4);
    }
    if (tick[2] !== null) {
      pen.fillStyle = colour("--bad");
      pen.fillRect(x - 1, base + 3, 2.4, 8);
    }
  }
}

// [[step, value], …] with its bounds and last step.
export function curve(canvas, points, isShare) {
  const { pen, width, height } = prepared(canvas);
  if (!width || !points.length) return;
  const left = 50, base = height - 15;
  const values = points.map((point) => point[1]);
  let low = Math.min(...values), high = Math.max(...values);
  if (isShare) { low = 0; high = 1; }
  if (high - low < 1e-12) { low -= Math.abs(low) * 0.1 || 0.1; high += Math.abs(high) * 0.1 || 0.1; }
  const first = points[0][0], last = points[points.length - 1][0];
  const x = (step) => left + ((step - first) / Math.max(1, last - first)) * (width - left - 4);
  const y = (value) => base - ((value - low) / (high - low)) * (base - 6);
  const label = (value) => (isShare ? `${Math.round(value * 100)} %` : figure(value));
  pen.strokeStyle = colour("--line");
  pen.fillStyle = colour("--soft");
  pen.textAlign = "right";
  for (const value of [low, (low + high) / 2, high]) {
    pen.beginPath(); pen.moveTo(left, y(value)); pen.lineTo(width, y(value)); pen.stroke();
    pen.fillText(label(value), left - 5, y(value) + 4);
  }
  pen.fillText(String(last), width - 2, height - 3);
  pen.textAlign = "left";
  pen.fillText(String(first), left, height - 3);
  pen.strokeStyle = colour("--measured");
  pen.lineWidth = 1.6;
  pen.lineJoin = "round";
  pen.beginPath();
  points.forEach(([step, value], index) => {
    if (index) pen.lineTo(x(step), y(value)); else pen.moveTo(x(step), y(value));
  });
  pen.stroke();
  pen.lineWidth = 1;
  pen.fillStyle = colour("--measured");
  const end = points[points.length - 1];
  pen.beginPath(); pen.arc(x(end[0]), y(end[1]), 2.6, 0, 7); pen.fill();
}

// The path of the gripper: lines that fade towards its end, and a ring there.
export function path(group, points) {
  const space = "http://www.w3.org/2000/svg";
  const count = Math.max(0, points.length - 1);
  const lines = rows(group, count ? count + 1 : 0, () => document.createElementNS(space, "line"));
  for (let index = 0; index < count; index++) {
    const [[x1, y1], [x2, y2]] = [points[index], points[index + 1]];
    const line = lines[index];
    line.setAttribute("x1", x1 * 1000); line.setAttribute("y1", y1 * 750);
    line.setAttribute("x2", x2 * 1000); line.setAttribute("y2", y2 * 750);
    line.setAttribute("opacity", 1 - 0.6 * (index / count));
  }
  if (!count) return;
  const [x, y] = points[count], end = lines[count];
  end.setAttribute("x1", x * 1000); end.setAttribute("y1", y * 750);
  end.setAttribute("x2", x * 1000); end.setAttribute("y2", y * 750);
  end.setAttribute("stroke-width", "11");
  end.setAttribute("opacity", "1");
}
