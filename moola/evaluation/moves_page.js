"use strict";
// Candles on a canvas: wheel or buttons zoom, dragging and the arrow keys move, a click on a row of
// the table goes to its move. Bars stand side by side: a pause takes no room, and is a dotted line.
const data = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("chart");
const note = document.getElementById("note");
const pen = canvas.getContext("2d");
const rows = Array.from(document.querySelectorAll("#moves tbody tr"));
const list = document.querySelector(".list");
const n = data.close.length;
const LEFT = 64, BOTTOM = 22, TOP = 18, LEAST_BARS = 20;
let first = 0, count = Math.min(n, 400), chosen = -1;

const minute = (i) => new Date((data.start + data.minutes[i]) * 60000).toISOString();
const text = (i) => minute(i).slice(0, 10) + " " + minute(i).slice(11, 16);

function limit() {
  count = Math.max(Math.min(LEAST_BARS, n), Math.min(n, count));
  first = Math.max(0, Math.min(n - count, first));
}

function size() {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  draw();
}

function step(span, parts) {
  const rough = span / parts, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((k) => k * power >= rough);
}

function draw() {
  limit();
  const width = canvas.clientWidth - LEFT, height = canvas.clientHeight - BOTTOM - TOP;
  const low = Math.floor(first), high = Math.min(n, Math.ceil(first + count) + 1);
  let bottom = Infinity, top = -Infinity;
  for (let i = low; i < high; i++) {
    bottom = Math.min(bottom, data.low[i]);
    top = Math.max(top, data.high[i]);
  }
  const room = (top - bottom) * 0.06 || Math.abs(top) * 1e-4 || 1;
  bottom -= room; top += room;
  const wide = width / count;
  const x = (i) => LEFT + (i - first) * wide;
  const y = (price) => TOP + (top - price) / (top - bottom) * height;

  pen.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
  pen.font = "11px system-ui, sans-serif";
  grid(bottom, top, x, y, width, height);
  pen.save();
  pen.beginPath();
  pen.rect(LEFT, 0, width, TOP + height);
  pen.clip();
  moves(x, wide, height, low, high);
  pauses(x, height, low, high);
  wide > 1.5 ? candles(x, y, wide, low, high) : lines(x, y, low, high, wide);
  pen.restore();
}

function grid(bottom, top, x, y, width, height) {
  pen.fillStyle = "#616e7c";
  pen.strokeStyle = "#e4e8ec";
  pen.lineWidth = 1;
  const by = step(top - bottom, 6);
  const digits = Math.max(0, -Math.floor(Math.log10(by)));
  pen.textAlign = "right";
  for (let price = Math.ceil(bottom / by) * by; price < top; price += by) {
    pen.beginPath(); pen.moveTo(LEFT, y(price)); pen.lineTo(LEFT + width, y(price)); pen.stroke();
    pen.fillText(price.toFixed(digits), LEFT - 6, y(price) + 4);
  }
  pen.textAlign = "center";
  const labels = Math.max(2, Math.floor(width / 170));
  for (let k = 0; k < labels; k++) {
    const i = Math.min(n - 1, Math.round(first + (k + 0.5) / labels * count));
    pen.fillText(text(i), x(i + 0.5), TOP + height + 15);
  }
}

function moves(x, wide, height, low, high) {
  data.moves.forEach((move, k) => {
    if (move.last < low || move.first >= high) return;
    const left = x(move.first), span = Math.max((move.last + 1 - move.first) * wide, 2);
    const alpha = 0.12 + 0.3 * move.probability;
    pen.fillStyle = k === chosen ? `rgba(213,94,0,${alpha})` : `rgba(0,114,178,${alpha})`;
    pen.fillRect(left, TOP, span, height);
    if (wide > 3 || k === chosen) {
      pen.fillStyle = "#1f2933";
      pen.textAlign = "left";
      pen.fillText(`${k + 1}: ${move.probability.toFixed(2)}`, left, TOP - 5);
    }
  });
}

function pauses(x, height, low, high) {
  pen.strokeStyle = "#8896a5";
  pen.lineWidth = 1;
  pen.setLineDash([2, 4]);
  for (let i = Math.max(low, 1); i < high; i++) {
    if (data.minutes[i] - data.minutes[i - 1] < data.pause) continue;
    pen.beginPath(); pen.moveTo(x(i), TOP); pen.lineTo(x(i), TOP + height); pen.stroke();
  }
  pen.setLineDash([]);
}

function candles(x, y, wide, low, high) {
  pen.strokeStyle = "#1f2933";
  pen.lineWidth = 1;
  const half = Math.max(0.5, wide * 0.36);
  for (let i = low; i < high; i++) {
    const middle = x(i + 0.5);
    const up = data.close[i] >= data.open[i];
    const from = y(Math.max(data.open[i], data.close[i])), to = y(Math.min(data.open[i], data.close[i]));
    pen.beginPath(); pen.moveTo(middle, y(data.high[i])); pen.lineTo(middle, y(data.low[i])); pen.stroke();
    pen.fillStyle = up ? "#ffffff" : "#1f2933";
    pen.fillRect(middle - half, from, 2 * half, Math.max(1, to - from));
    pen.strokeRect(middle - half, from, 2 * half, Math.max(1, to - from));
  }
}

function lines(x, y, low, high, wide) {
  pen.strokeStyle = "#1f2933";
  pen.lineWidth = 1;
  const each = Math.max(1, Math.floor(1 / wide));
  pen.beginPath();
  for (let i = low; i < high; i += each) {
    let bottom = Infinity, top = -Infinity;
    for (let k = i; k < Math.min(high, i + each); k++) {
      bottom = Math.min(bottom, data.low[k]);
      top = Math.max(top, data.high[k]);
    }
    pen.moveTo(x(i + 0.5), y(top)); pen.lineTo(x(i + 0.5), y(bottom) + 0.7);
  }
  pen.stroke();
}

function zoom(factor, at) {
  const middle = first + at * count;
  count = Math.max(Math.min(LEAST_BARS, n), Math.min(n, count * factor));
  first = middle - at * count;
  draw();
}

function show(k) {
  chosen = Math.max(0, Math.min(data.moves.length - 1, k));
  const move = data.moves[chosen];
  if (!move) return;
  count = 160;
  first = (move.first + move.last) / 2 - count / 2;
  rows.forEach((row, j) => row.classList.toggle("chosen", j === chosen));
  list.scrollTop = rows[chosen].offsetTop - list.clientHeight / 2;
  location.hash = String(chosen + 1);
  draw();
}

canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const at = (event.offsetX - LEFT) / (canvas.clientWidth - LEFT);
  zoom(event.deltaY > 0 ? 1.2 : 1 / 1.2, Math.max(0, Math.min(1, at)));
}, {passive: false});
let held = null;
canvas.addEventListener("pointerdown", (event) => {
  held = {x: event.clientX, first};
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointerup", () => { held = null; });
canvas.addEventListener("pointermove", (event) => {
  const wide = (canvas.clientWidth - LEFT) / count;
  if (held) {
    first = held.first - (event.clientX - held.x) / wide;
    draw();
    return;
  }
  const i = Math.floor(first + (event.offsetX - LEFT) / wide);
  if (i < 0 || i >= n || event.offsetX < LEFT) return;
  const prices = ["open", "high", "low", "close"].map((name) => `${name} ${data[name][i]}`);
  note.textContent = `${text(i)} UTC   ${prices.join("   ")}`;
});
document.addEventListener("keydown", (event) => {
  const steps = {ArrowLeft: -0.2, ArrowRight: 0.2};
  if (event.key in steps) { first += steps[event.key] * count; draw(); }
  if (event.key === "+") zoom(1 / 1.5, 0.5);
  if (event.key === "-") zoom(1.5, 0.5);
  if (event.key === "n") show(chosen + 1);
  if (event.key === "p") show(chosen - 1);
});
const buttons = {
  closer: () => zoom(1 / 1.6, 0.5), wider: () => zoom(1.6, 0.5),
  all: () => { first = 0; count = n; draw(); },
  earlier: () => { first -= 0.5 * count; draw(); }, later: () => { first += 0.5 * count; draw(); },
  previous: () => show(chosen - 1), next: () => show(chosen + 1),
};
for (const [name, act] of Object.entries(buttons)) {
  document.getElementById(name).addEventListener("click", act);
}
rows.forEach((row, k) => row.addEventListener("click", () => show(k)));
window.addEventListener("resize", size);
size();
const wanted = Number(location.hash.slice(1));
if (wanted >= 1 && data.moves.length) show(wanted - 1);
