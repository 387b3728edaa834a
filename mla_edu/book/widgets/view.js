// The view that all widgets are: controls, what a reader writes into them, the address, and what is said.

// --- numbers that a reader writes; limits are [lowest, highest, step]

const SCALES = { "": 1, k: 1024, m: 1024 ** 2 }; // as in mla_edu.words.parse_count

// The whole number that a text such as 4096, 131,072 or 128k says; null where it says none
function number_in(text) {
  const plain = text.trim().replace(/(?<=\d),(?=\d{3})/g, "");
  const [, number, scale] = /^([+-]?\d+)([km]?)$/i.exec(plain) ?? [];
  return number === undefined ? null : Number(number) * SCALES[scale.toLowerCase()];
}

// The number that a text means, kept within its limits; null where it means none
function read_number(text, [lowest, highest, step = 1]) {
  const number = number_in(text);
  if (number === null) return null;
  const within = Math.min(Math.max(number, lowest), highest);
  return within - (within % step);
}

const corrected = (label, text, value) =>
  value === number_in(text) ? "" : `${label}: ${text.slice(0, 40)} became ${count(value)}.`;

const ignored = (label, text, why) => `${label}: ignored “${text.slice(0, 40)}”, which is ${why}.`;

// --- the view of a model

let views = 0; // makes the ids of labels unique
const HUSH = 500; // milliseconds without a change before a screen reader is told the summary

// `shared` has the settings that a reader may share: by name a label, and the number's limits or the choices.
class View {
  constructor({ model, el, address = null }, name, label, shared) {
    Object.assign(this, { model, el, address, name, label, shared, prefix: `mla-${name}-${++views}` });
    this.note = h("p", { class: "mla-part-note", role: "status" });
    this.summary = h("p", { class: "mla-part-summary" });
    this.live = h("p", { class: "mla-part-live", "aria-live": "polite" });
    this.first = this.settings();
    const said = [];
    for (const [key, value] of Object.entries(address ? this.restored(said) : {})) model.set(key, value);
    this.note.textContent = said.filter((text) => text !== "").join(" ");
  }

  settings() {
    return Object.fromEntries(Object.keys(this.shared).map((name) => [name, this.model.get(name)]));
  }

  // The settings as the address has them; null leaves one out
  written() {
    return this.settings();
  }

  // The settings that the address holds, as far as they mean something; what does not is said
  restored(said, shared = this.shared) {
    const settings = {};
    for (const [name, { label, limits, choices }] of Object.entries(shared)) {
      const text = this.address.get(name);
      if (text === null) continue;
      const value = limits ? read_number(text, limits) : choices.find((choice) => `${choice}` === text);
      if (value === null) said.push(ignored(label, text, "no whole number"));
      else if (value === undefined) said.push(ignored(label, text, "not known"));
      else settings[name] = value;
      if (limits && value !== null) said.push(corrected(label, text, value));
    }
    return settings;
  }

  set(settings, said = "") {
    for (const [name, value] of Object.entries(settings)) this.model.set(name, value);
    this.model.save_changes();
    this.note.textContent = said;
    this.address?.set(this.written());
  }

  // The summary, seen at once and told when it has come to rest
  say(text) {
    if (text === this.summary.textContent) return;
    const begun = this.summary.textContent !== "";
    this.summary.textContent = text;
    clearTimeout(this.hush);
    if (begun) this.hush = setTimeout(() => (this.live.textContent = text), HUSH);
  }

  button(name, label, act) {
    const element = h("button", { type: "button", name }, label);
    element.addEventListener("click", act);
    return element;
  }

  reset() {
    this.stop?.();
    this.set(this.first);
    this.address?.set(Object.fromEntries(Object.keys(this.written()).map((name) => [name, null])));
  }

  async copy_link() {
    this.address.set(this.written());
    try {
      await navigator.clipboard.writeText(location.href);
      this.note.textContent = "The link to this view is copied.";
    } catch {
      this.note.textContent = "This browser lets nobody copy: the link to this view stands in the address bar.";
    }
  }

  // Buttons that move a setting from step to step, and let it run
  player({ name, last, pace, words = { play: "Play", pause: "Pause" }, more = [] }) {
    const at = () => Math.min(this.model.get(name), last());
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      play.textContent = words.play;
    };
    const move = (to) => {
      this.set({ [name]: Math.min(Math.max(to, 0), last()) });
      if (at() === last()) stop();
    };
    const go = (to) => {
      stop(); // what a reader asks for ends the playing
      move(to);
    };
    const play = this.button("play", words.play, () => {
      if (timer) return stop();
      if (at() === last()) move(0);
      play.textContent = words.pause;
      timer = setInterval(() => move(at() + 1), pace);
    });
    const steps = {
      previous: this.button("previous", "Previous", () => go(at() - 1)),
      next: this.button("next", "Next", () => go(at() + 1)),
    };
    this.stop = stop;
    return { element: h("div", { class: "mla-part-buttons" }, ...more.map((key) => steps[key]), play), stop };
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
    const bounds = { "aria-valuemin": lowest, "aria-valuemax": highest };
    const text = h("input", {
      type: "text",
      role: "spinbutton",
      name,
      inputmode: "numeric",
      autocomplete: "off",
      ...bounds,
    });
    const log = slider === "log";
    const to_slider = (value) => (!log ? value : value === 0 ? -step : Math.log2(value));
    const from_slider = (place) => (!log ? place : place < 0 ? 0 : Math.min(Math.round(2 ** place), highest));
    const ends = { min: to_slider(lowest), max: to_slider(highest), step: log ? step : 1 };
    const range = slider && h("input", { type: "range", name: `${name}-slider`, "aria-label": label, ...ends });
    let writing = false; // the field is left alone while the reader writes in it
    let meant = null; // the setting that came of it; if it changes, the reader has gone on to something else

    const paint = () => {
      if (!writing || (meant !== null && meant !== read())) text.value = read();
      text.setAttribute("aria-valuenow", read());
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
    text.addEventListener("keydown", (event) => {
      const by = { ArrowUp: multiple, ArrowDown: -multiple }[event.key];
      if (!by) return;
      event.preventDefault();
      writing = false;
      take(read_number(`${read() + by}`, limits), "");
      paint();
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
    const buttons = [this.button("reset", "Reset", () => this.reset())];
    if (this.address) buttons.push(this.button("copy", "Copy link", () => this.copy_link()));
    paint();
    this.el.append(
      h("div", frame, ...children, h("div", { class: "mla-part-buttons mla-part-foot" }, ...buttons), this.live),
    );
    this.model.on(events, paint);
    return () => this.model.off(events, paint);
  }
}

const controls = (fields) => h("div", { class: "mla-part-controls" }, ...fields.map(({ element }) => element));
