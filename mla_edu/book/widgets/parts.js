// What all widgets share: elements and parts of drawings.
// Text enters the page as textContent only.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A number shown, with its exact value beside it
function quantity(label, name, value, written, missing = "") {
  const title = typeof value === "bigint" ? count(value) : value;
  const shown = h(
    "dd",
    { "data-quantity": name, "data-value": value ?? "", title },
    value === null ? missing : written(value),
  );
  return h("div", {}, h("dt", {}, label), shown);
}

// A bar as long as a value's share of the largest
function bar(value, largest) {
  const share = h("span");
  share.style.width = `${largest ? (Number(value) / Number(largest)) * 100 : 0}%`;
  return h("div", { class: "mla-part-bar", "aria-hidden": "true" }, share);
}

const options = (choices) => choices.map(([value, text]) => h("option", { value }, text));

// --- plots

const PLOT = { width: 360, height: 210, left: 46, right: 340, top: 20, bottom: 172 };

// A scale from one range of numbers to another
const scale =
  ([low, high], [from, to]) =>
  (value) =>
    from + ((value - low) / (high - low)) * (to - from);

const line = (x1, y1, x2, y2, attributes) => svg("line", { x1, y1, x2, y2, ...attributes });

// Axes with [value, label] at each tick; the tick at the value `base` is drawn stronger
function axes({ x, y, x_ticks, y_ticks, x_name, y_name, base = null }) {
  const { width, height, left, right, top, bottom } = PLOT;
  const vertical = x_ticks.flatMap(([value, label]) => [
    line(x(value), top, x(value), bottom, { stroke: "var(--rule)" }),
    svg("text", { x: x(value), y: bottom + 15, "text-anchor": "middle" }, label),
  ]);
  const horizontal = y_ticks.flatMap(([value, label]) => [
    line(left, y(value), right, y(value), { stroke: value === base ? "var(--quiet)" : "var(--rule)" }),
    svg("text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, label),
  ]);
  const names = [
    svg("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, x_name),
    svg("text", { x: 2, y: 9 }, y_name),
  ];
  return [...vertical, ...horizontal, ...names];
}

// Powers of ten for an axis that shows logarithms
function powers(low, high) {
  const label = (power) => (power < 0 ? (10 ** power).toFixed(-power) : count(10 ** power));
  return Array.from({ length: high - low + 1 }, (_, i) => [low + i, label(low + i)]);
}

// A line through points, each [x, y]
function curve(points, attributes) {
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
  return svg("path", { fill: "none", "stroke-width": 2, "stroke-linejoin": "round", ...attributes, d });
}

const mark = (cx, cy, fill, name) =>
  svg("circle", { cx, cy, r: 5, fill, stroke: "var(--paper)", "stroke-width": 2, "data-mark": name });

// A dashed line across the plot, with a label at its foot
function crossing(x, label, name) {
  const { left, right, top, bottom } = PLOT;
  const end = x > left + 0.8 * (right - left);
  return [
    line(x, top, x, bottom, { stroke: "var(--quiet)", "stroke-dasharray": "4 3", "data-mark": name }),
    svg("text", { x: x + (end ? -5 : 5), y: bottom - 6, "text-anchor": end ? "end" : "start" }, label),
  ];
}

const plot = (...parts) => svg("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img" }, ...parts);
