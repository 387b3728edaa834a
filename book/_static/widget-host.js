// Shows anywidget widgets on a page that has no kernel, from the state that the notebook saved.
// Loaded by pages with widgets only. See https://anywidget.dev/en/afm/ for the interface that a widget expects.

const STATE = 'script[type="application/vnd.jupyter.widget-state+json"]';
const VIEW = 'script[type="application/vnd.jupyter.widget-view+json"]';

class Model {
  #state;
  #listeners = new Map();

  constructor(state) {
    this.#state = { ...state };
  }

  get(name) {
    return this.#state[name];
  }

  set(name, value) {
    if (this.#state[name] === value) return;
    this.#state[name] = value;
    this.#emit(`change:${name}`, value);
    this.#emit("change");
  }

  save_changes() {} // there is no kernel to send to

  on(event, callback) {
    for (const name of event.split(" ")) {
      if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
      this.#listeners.get(name).add(callback);
    }
  }

  off(event, callback) {
    const names = event ? event.split(" ") : [...this.#listeners.keys()];
    for (const name of names) {
      if (callback) this.#listeners.get(name)?.delete(callback);
      else this.#listeners.delete(name);
    }
  }

  send() {}

  #emit(event, value) {
    for (const callback of [...(this.#listeners.get(event) ?? [])]) callback(value);
  }
}

async function load(entry) {
  const { _esm, _css, ...state } = entry.state;
  if (_css) {
    const style = document.createElement("style");
    style.textContent = _css;
    document.head.append(style);
  }
  const address = URL.createObjectURL(new Blob([_esm], { type: "text/javascript" }));
  const module = await import(address);
  URL.revokeObjectURL(address);
  const widget = typeof module.default === "function" ? await module.default() : (module.default ?? module);
  const model = new Model(state);
  await widget.initialize?.({ model });
  return { model, widget };
}

const loaded = new Map(); // model id -> its module and model, shared by all of its views

async function show(view, entries) {
  const { model_id: id } = JSON.parse(view.textContent);
  const entry = entries[id];
  if (!entry?.state._esm) throw new Error(`the page holds no anywidget state for model ${id}`);
  if (!loaded.has(id)) loaded.set(id, load(entry));
  const { model, widget } = await loaded.get(id);
  const el = document.createElement("div");
  el.className = "mla-widget";
  view.after(el);
  await widget.render({ model, el });
}

const saved = document.querySelector(STATE);
if (saved) {
  const { state } = JSON.parse(saved.textContent);
  for (const view of document.querySelectorAll(VIEW)) {
    show(view, state).catch((error) => console.error("widget:", error));
  }
}
