// The results of chapter 16 in the browser: the formulas first, named as in Python, then the view.

const SETTINGS = ["dtype", "heads", "s_q", "context", "batch"];

const rows = ({ heads, s_q }) => heads * s_q;
const cache_bytes = (sizes, { context, batch, dtype }) => batch * context * sizes.token_bytes[dtype];
const bytes = (sizes, choice) => cache_bytes(sizes, choice) + choice.batch * rows(choice) * sizes.row_bytes;
const flops = (sizes, choice) => choice.batch * rows(choice) * choice.context * sizes.flops_per_score;

const step_key = (choice) => SETTINGS.map((name) => choice[name]).join(" ");

function nearest(sizes, values, wanted) {
  const number = (value) => sizes.bytes_per_number[value] ?? value;
  const distance = (value) => Math.abs(Math.log2(number(value) / number(wanted)));
  return values.includes(wanted) ? wanted : values.reduce((best, value) => (distance(value) < distance(best) ? value : best));
}

function times({ kernels, steps, reasons }, choice) {
  const cells = steps[step_key(choice)] ?? kernels.map(() => 0);
  return new Map(kernels.map((kernel, i) => [kernel, cells[i] > 0 ? cells[i] : reasons[-cells[i]]]));
}

const timed = (time) => typeof time === "number";

// Microseconds of the bytes alone and of the operations alone
function bounds({ limits }, sizes, choice) {
  return [
    (1e6 * bytes(sizes, choice)) / limits.copy_bytes_per_s,
    (1e6 * flops(sizes, choice)) / limits.matmul_flop_per_s,
  ];
}

function pace(machine, sizes, choice) {
  const [memory, arithmetic] = bounds(machine, sizes, choice);
  return memory >= arithmetic ? "memory" : "arithmetic";
}

function quantities(machine, sizes, choice) {
  const found = times(machine, choice).get(machine.kernels[0]);
  const layer = machine.kind === "layer";
  const limit = layer ? machine.least[step_key(choice)] : Math.max(...bounds(machine, sizes, choice));
  const of_time = (value) => (timed(found) ? value / found : null);
  const common = { microseconds: timed(found) ? found : null, share: of_time(limit), limit, cache_bytes: cache_bytes(sizes, choice) };
  if (layer) return common;
  return {
    ...common,
    gb_per_s: of_time(bytes(sizes, choice) / 1e3),
    tflop_per_s: of_time(flops(sizes, choice) / 1e6),
    intensity: flops(sizes, choice) / bytes(sizes, choice),
  };
}

// --- words

const LABELS = { dtype: "cache", heads: "heads", s_q: "new tokens", context: "cached tokens", batch: "batch" };

const digits = (number) => (number >= 99.95 ? count(Math.round(number)) : number.toPrecision(3));
const duration = (time) => (time >= 1e3 ? `${digits(time / 1e3)} ms` : `${digits(time)} µs`);
const percent = (share) => `${share >= 0.0995 ? count(Math.round(100 * share)) : (100 * share).toPrecision(2)}%`;
const ratio = (number) => `${number >= 9.95 ? number.toFixed(0) : number.toPrecision(2)}x`;

function size(number) {
  const [unit, name] = [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([unit]) => number >= unit || unit === 1e3);
  return `${digits(number / unit)} ${name}`;
}

function sentence(machine, sizes, choice) {
  const [found, taken] = [quantities(machine, sizes, choice), times(machine, choice)];
  const [least, ours] = [duration(found.limit), machine.kernels[0]];
  if (machine.kind === "datasheet") {
    const room = found.cache_bytes > machine.memory ? ` Its ${size(machine.memory)} do not hold this cache.` : "";
    const bound = `By its datasheet a step takes at least ${least}; ${pace(machine, sizes, choice)} sets the pace.`;
    return `${machine.title}: not measured yet. ${bound}${room}`;
  }
  const layer = machine.kind === "layer";
  const start = layer ? "A whole layer, projections included, not the kernel alone; " : "";
  const allows = `what this machine's ${layer ? "copy and product allow" : `${pace(machine, sizes, choice)} allows`}`;
  if (found.microseconds === null) return `${start}${ours}: ${taken.get(ours)}. W${allows.slice(1)}: ${least} at best.`;
  const peers = [...taken].filter(([name, time]) => name !== ours && timed(time));
  const [fastest, time] = peers.reduce((best, peer) => (peer[1] < best[1] ? peer : best), [null, Infinity]);
  const compare = fastest === null ? "" : `; ${ratio(time / found.microseconds)} as fast as ${fastest}`;
  return `${start}${ours}: ${duration(found.microseconds)}, ${percent(found.share)} of ${allows}${compare}.`;
}

function limit_label(machine, sizes, choice) {
  if (machine.kind === "layer") return "limit, measured copy or product";
  const what = { memory: "copy", arithmetic: "product" }[pace(machine, sizes, choice)];
  return machine.kind === "measured" ? `limit, measured ${what}` : "limit by the datasheet";
}

// --- a bar for each time, and a line through all at the limit

const SCALE = 6; // times our time: longer bars of other kernels are cut, so that the near ones can be compared

function bars(machine, sizes, choice) {
  const taken = [...times(machine, choice)];
  const { limit, microseconds } = quantities(machine, sizes, choice);
  const longest = Math.max(limit, ...taken.map(([, time]) => time).filter(timed));
  const end = machine.kind === "measured" ? Math.min(longest, SCALE * Math.max(limit, microseconds ?? 0)) : longest;
  const row = (name, kind, time) => {
    const element = h("div", { class: `mla-measured-${kind}`, "data-bar": kind }, h("dt", {}, name));
    if (!timed(time)) return fill(element, {}, [h("dd", { class: "mla-measured-reason" }, h("span", {}, time))]);
    const bar = h("span", { class: `mla-measured-bar${time > end ? " mla-measured-cut" : ""}`, "aria-hidden": "true" });
    bar.style.setProperty("--part", Math.min(time / end, 1));
    return fill(element, { "data-time": time }, [h("dd", {}, bar, h("span", {}, duration(time)))]);
  };
  const list = h(
    "dl",
    {},
    ...taken.map(([name, time], i) => row(name, i ? "peer" : "ours", time)),
    row(limit_label(machine, sizes, choice), "limit", limit),
  );
  list.style.setProperty("--limit", limit / end);
  return longest > end ? [list, h("p", { class: "mla-part-quiet" }, "A bar that fades goes on beyond the scale.")] : [list];
}

function numbers(machine, sizes, choice) {
  const found = quantities(machine, sizes, choice);
  const missing = machine.kind === "datasheet" ? "not measured yet" : "no time";
  const ours = machine.kernels[0];
  const entries = [
    [`${ours}, µs`, "microseconds", digits],
    ["share of the limit", "share", percent],
    ["limit, µs", "limit", digits],
    ["cache", "cache_bytes", size],
    [`${ours}, GB/s`, "gb_per_s", digits],
    [`${ours}, TFLOP/s`, "tflop_per_s", digits],
    ["FLOP per byte", "intensity", digits],
  ];
  return entries
    .filter(([, name]) => name in found)
    .map(([label, name, written]) => quantity(label, name, found[name] ?? "", found[name] === null ? missing : written(found[name])));
}

// --- the view

function render({ model, el }) {
  const { machines, ...sizes } = JSON.parse(model.get("results"));
  const prefix = `mla-measured-${++views}`;
  const note = h("p", { class: "mla-part-note", role: "status" });
  const summary = h("p", { class: "mla-part-summary", "aria-live": "polite" });
  const chart = h("div", { class: "mla-measured-bars" });
  const answers = h("dl");
  const about = h("p", { class: "mla-part-quiet mla-measured-about" });

  const present = () => machines.find(({ name }) => name === model.get("machine"));
  const fitted = ({ axes }) => Object.fromEntries(SETTINGS.map((name) => [name, nearest(sizes, axes[name], model.get(name))]));
  const written = (value) => (timed(value) ? count(value) : value);

  function take(settings, said) {
    for (const [name, value] of Object.entries(settings)) model.set(name, value);
    model.save_changes();
    note.textContent = said;
  }
  function picker(name, label, change) {
    const select = h("select", { name, id: `${prefix}-${name}` });
    select.addEventListener("change", () => change(select.value));
    return { select, element: h("div", { class: `mla-measured-${name}` }, h("label", { for: select.id }, label), select) };
  }
  function move(name) {
    const [machine, before] = [machines.find((machine) => machine.name === name), fitted(present())];
    const after = Object.fromEntries(SETTINGS.map((setting) => [setting, nearest(sizes, machine.axes[setting], before[setting])]));
    const moved = SETTINGS.filter((setting) => after[setting] !== before[setting]);
    const changes = moved.map((setting) => `${LABELS[setting]}: ${written(before[setting])} became ${written(after[setting])}`);
    take({ machine: name, ...after }, changes.length ? `${changes.join("; ")}, the nearest here.` : "");
  }
  const machine_picker = picker("machine", "machine", move);
  const pickers = SETTINGS.map((name) =>
    picker(name, LABELS[name], (text) => take({ [name]: present().axes[name].find((value) => `${value}` === text) }, "")),
  );
  const option = (value, text) => h("option", { value }, text);
  const title = (machine) => (machine.kind === "datasheet" ? `${machine.title} (not measured yet)` : machine.title);
  machine_picker.select.append(...machines.map((machine) => option(machine.name, title(machine))));
  let offered = null; // the machine whose values the pickers hold

  function paint() {
    const machine = present();
    const choice = fitted(machine);
    machine_picker.select.value = machine.name;
    pickers.forEach(({ select }, i) => {
      const values = machine.axes[SETTINGS[i]];
      if (machine !== offered) select.replaceChildren(...values.map((value) => option(value, written(value))));
      select.value = choice[SETTINGS[i]];
    });
    offered = machine;
    summary.textContent = sentence(machine, sizes, choice);
    chart.replaceChildren(...bars(machine, sizes, choice));
    answers.replaceChildren(...numbers(machine, sizes, choice));
    about.textContent = machine.about;
  }

  const root = h(
    "div",
    { class: "mla-part", "data-widget": "measured-results", role: "group", "aria-label": "What was measured" },
    h("div", { class: "mla-part-controls mla-measured-controls" }, ...[machine_picker, ...pickers].map(({ element }) => element)),
    note,
    summary,
    chart,
    h("div", { class: "mla-measured-numbers" }, answers),
    about,
  );
  return live({ model, el, root, paint, settings: ["machine", ...SETTINGS] });
}

export default { render };
