// Shared by the widgets of chapters: elements, number fields with a slider, scales of a plot.
// Text enters the page as textContent only.

const SVG = "http://www.w3.org/2000/svg";

const count = (number) => number.toLocaleString("en-US");

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A line through points, each [x, y].
function curve(points, attributes) {
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
  return svg("path", { fill: "none", "stroke-width": 2, "stroke-linejoin": "round", ...attributes, d });
}

// A number shown, with its exact value beside it.
function quantity(label, name, value, text) {
  const shown = h("dd", { "data-quantity": name, "data-value": value, title: value }, text);
  return h("div", {}, h("dt", {}, label), shown);
}

// The whole number that a text means, kept within its limits; null where it means none.
function read_number(text, [lowest, highest]) {
  if (!/^[+-]?\d+$/.test(text)) return null;
  return Math.min(Math.max(Number(text), lowest), highest);
}

// A number field above a slider, both for one setting of the model. On a log scale the slider moves by powers of two,
// and zero stands one step below one.
function number_field({ model, note, prefix, name, label, limits, log = false, step = 0.25 }) {
  const [lowest, highest] = limits;
  const to_slider = (value) => (!log ? value : value === 0 ? -step : Math.log2(value));
  const from_slider = (place) => (!log ? place : place < 0 ? 0 : Math.min(Math.round(2 ** place), highest));
  const text = h("input", { type: "number", name, id: `${prefix}-${name}`, min: lowest, max: highest, step: 1, inputmode: "numeric" });
  const ends = { min: to_slider(lowest), max: to_slider(highest), step: log ? step : 1 };
  const slider = h("input", { type: "range", name: `${name}-slider`, "aria-label": label, ...ends });
  let edited = false; // while the reader writes, a field that means the setting, or nothing yet, is left alone

  function take(value, said) {
    model.set(name, value);
    model.save_changes();
    note.textContent = said;
  }
  function paint() {
    const meant = edited ? (read_number(text.value, limits) ?? model.get(name)) : null;
    if (meant !== model.get(name)) text.value = model.get(name);
    slider.value = to_slider(model.get(name));
    slider.setAttribute("aria-valuetext", count(model.get(name)));
  }
  text.addEventListener("input", () => {
    edited = true;
    const value = read_number(text.value, limits);
    if (value === null) note.textContent = `${label}: expected a whole number from ${count(lowest)} to ${count(highest)}.`;
    else take(value, value === Number(text.value) ? "" : `${label}: ${text.value.slice(0, 40)} became ${count(value)}.`);
  });
  text.addEventListener("change", () => {
    edited = false;
    paint();
  });
  slider.addEventListener("input", () => take(from_slider(Number(slider.value)), ""));
  return { element: h("div", { class: "mla-part-field" }, h("label", { for: text.id }, label), text, slider), paint };
}

let views = 0; // makes the ids of labels unique

// Puts root into the page, paints it now and whenever a setting changes; returns what stops that.
function live({ model, el, root, settings, paint }) {
  paint();
  el.append(root);
  const events = settings.map((name) => `change:${name}`).join(" ");
  model.on(events, paint);
  return () => model.off(events, paint);
}
