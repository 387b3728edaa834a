// Shows anywidget widgets on a page that has no kernel, from the state that the notebook saved.
// Loaded by pages with widgets only; a plain script, since browsers load no module from a file on disk.
// See https://anywidget.dev/en/afm/ for the interface that a widget expects.
// Beside model and el, render gets an address: the settings of a shared view, which only a page can offer.

{
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

  const WRITES = 20; // in ten seconds: browsers refuse more than about a hundred in half a minute

  // A widget's settings in the query of the page's address: the first widget's by their names, those of the second as
  // "2.name", and so on.
  class Address {
    #prefix;
    #waiting = null;
    static #written = [];

    constructor(place) {
      this.#prefix = place > 1 ? `${place}.` : "";
    }

    get(name) {
      return new URLSearchParams(location.search).get(this.#prefix + name);
    }

    // null takes a setting out
    set(settings) {
      clearTimeout(this.#waiting);
      const now = performance.now();
      Address.#written = Address.#written.filter((time) => now - time < 10_000);
      if (Address.#written.length >= WRITES) {
        this.#waiting = setTimeout(() => this.set(settings), 500);
        return;
      }
      Address.#written.push(now);
      const query = new URLSearchParams(location.search);
      for (const [name, value] of Object.entries(settings)) {
        if (value === null) query.delete(this.#prefix + name);
        else query.set(this.#prefix + name, value);
      }
      history.replaceState(history.state, "", `?${query.toString().replaceAll("%2C", ",")}${location.hash}`);
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
  const addresses = new Map(); // model id -> its part of the page's address

  async function show(view, entries) {
    const { model_id: id } = JSON.parse(view.textContent);
    const entry = entries[id];
    if (!entry?.state._esm) throw new Error(`the page holds no anywidget state for model ${id}`);
    if (!loaded.has(id)) {
      loaded.set(id, load(entry));
      addresses.set(id, new Address(loaded.size));
    }
    const { model, widget } = await loaded.get(id);
    const el = document.createElement("div");
    el.className = "mla-widget";
    view.after(el);
    await widget.render({ model, el, address: addresses.get(id) });
  }

  const saved = document.querySelector(STATE);
  if (saved) {
    const { state } = JSON.parse(saved.textContent);
    for (const view of document.querySelectorAll(VIEW)) {
      show(view, state).catch((error) => console.error("widget:", error));
    }
  }
}
