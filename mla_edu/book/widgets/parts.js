// What all widgets share: elements, parts of drawings, and a view with its controls.
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

const PLOT = { width: 360, height: 210, left: 40, right: 340, top: 20, bottom: 172 };

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

// --- numbers that a reader writes; limits are [lowest, highest, step]

// The number that a text means, kept within its limits; null where it means none
function read_number(text, [lowest, highest, step = 1]) {
  if (!/^[+-]?\d+$/.test(text)) return null;
  const within = Math.min(Math.max(Number(text), lowest), highest);
  return within - (within % step);
}

const corrected = (label, text, value) =>
  value === Number(text) ? "" : `${label}: ${text.slice(0, 40)} became ${count(value)}.`;

// --- the view of a model

let views = 0; // makes the ids of labels unique

class View {
  constructor({ model, el }, name, label) {
    Object.assign(this, { model, el, name, label, prefix: `mla-${name}-${++views}` });
    this.note = h("p", { class: "mla-part-note", role: "status" });
    this.summary = h("p", { class: "mla-part-summary", "aria-live": "polite" });
  }

  set(settings, said = "") {
    for (const [name, value] of Object.entries(settings)) this.model.set(name, value);
    this.model.save_changes();
    this.note.textContent = said;
  }

  labelled(label, control, ...more) {
    control.id = `${this.prefix}-${control.name}`;
    return h("div", { class: "mla-part-field" }, h("label", { for: control.id }, label), control, ...more);
  }

  picker({ name, label, choices, read = () => this.model.get(name), take = (value) => this.set({ [name]: value }) }) {
    const select = h("select", { name }, ...choices);
    select.addEventListener("change", () => take(select.value));
    return { select, element: this.labelled(label, select), paint: () => (select.value = read()) };
  }

  // A number field, and below it a slider where one is asked for: "linear", or "log", which moves by powers of two and
  // has zero one step below one.
  number_field({
    name,
    label,
    limits,
    slider = null,
    step = 0.25,
    read = () => this.model.get(name),
    take = (value, said) => this.set({ [name]: value }, said),
  }) {
    const [lowest, highest, multiple = 1] = limits;
    const text = h("input", { type: "number", name, min: lowest, max: highest, step: multiple, inputmode: "numeric" });
    const log = slider === "log";
    const to_slider = (value) => (!log ? value : value === 0 ? -step : Math.log2(value));
    const from_slider = (place) => (!log ? place : place < 0 ? 0 : Math.min(Math.round(2 ** place), highest));
    const ends = { min: to_slider(lowest), max: to_slider(highest), step: log ? step : 1 };
    const range = slider && h("input", { type: "range", name: `${name}-slider`, "aria-label": label, ...ends });
    let writing = false; // the field is left alone while the reader writes in it
    let meant = null; // the setting that came of it; if it changes, the reader has gone on to something else

    const paint = () => {
      if (!writing || (meant !== null && meant !== read())) text.value = read();
      if (range) range.value = to_slider(read());
      range?.setAttribute("aria-valuetext", count(read()));
    };
    text.addEventListener("input", () => {
      [writing, meant] = [true, null];
      const value = read_number(text.value, limits);
      if (value !== null) take(value, corrected(label, text.value, value));
      else this.note.textContent = `${label}: expected a whole number from ${count(lowest)} to ${count(highest)}.`;
      meant = read();
    });
    text.addEventListener("change", () => {
      writing = false;
      paint();
    });
    range?.addEventListener("input", () => take(from_slider(Number(range.value)), ""));
    return { element: this.labelled(label, text, ...(range ? [range] : [])), paint };
  }

  // Puts the view into the page, paints it now and whenever a setting changes; returns what stops that
  show(settings, paint, ...children) {
    const frame = { class: "mla-part", "data-widget": this.name, role: "group", "aria-label": this.label };
    const events = settings.map((name) => `change:${name}`).join(" ");
    paint();
    this.el.append(h("div", frame, ...children));
    this.model.on(events, paint);
    return () => this.model.off(events, paint);
  }
}

const controls = (fields) => h("div", { class: "mla-part-controls" }, ...fields.map(({ element }) => element));
const plot = (...parts) => svg("svg", { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: "img" }, ...parts);
