// What was measured, in the browser: its numbers, words and bars, then the view.

const SETTINGS = ["dtype", "heads", "s_q", "context", "batch"];

const step_key = (choice) => SETTINGS.map((name) => choice[name]).join(" ");

// The wanted value where it is there; else the nearest in ratio, formats by their bytes
function nearest(layer, values, wanted) {
  const number = (value) => (typeof value === "number" ? value : Number(kv_cache_bytes(layer, 1n, 1n, value)));
  const distance = (value) => Math.abs(Math.log2(number(value) / number(wanted)));
  return values.includes(wanted)
    ? wanted
    : values.reduce((best, value) => (distance(value) < distance(best) ? value : best));
}

function times({ kernels, steps, reasons }, choice) {
  const cells = steps[step_key(choice)] ?? kernels.map(() => 0);
  return new Map(kernels.map((kernel, i) => [kernel, cells[i] > 0 ? cells[i] : reasons[-cells[i]]]));
}

const timed = (time) => typeof time === "number";

// What a kernel must do for a choice, and how fast the machine can
function bound({ rates }, layer, { heads, s_q, context, batch, dtype }) {
  return [kernel_cost(layer, BigInt(heads * s_q), BigInt(context), BigInt(batch), dtype), rates];
}

function quantities(machine, layer, choice) {
  const found = times(machine, choice).get(machine.kernels[0]);
  const whole_layer = machine.kind === "layer";
  const limit = whole_layer ? machine.least[step_key(choice)] : 1e6 * step_seconds(...bound(machine, layer, choice));
  const of_time = (value) => (timed(found) ? value / found : null);
  const cache_bytes = kv_cache_bytes(layer, BigInt(choice.context), BigInt(choice.batch), choice.dtype);
  const common = { microseconds: timed(found) ? found : null, share: of_time(limit), limit, cache_bytes };
  if (whole_layer) return common;
  const [cost] = bound(machine, layer, choice);
  return {
    ...common,
    gb_per_s: of_time(Number(cost.bytes) / 1e3),
    tflop_per_s: of_time(Number(cost.flops) / 1e6),
    intensity: intensity(cost),
  };
}

// --- words

const LABELS = { dtype: "cache", heads: "heads", s_q: "new tokens", context: "cached tokens", batch: "batch" };

function sentence(machine, layer, choice) {
  const [found, taken] = [quantities(machine, layer, choice), times(machine, choice)];
  const [least, ours] = [duration(found.limit), machine.kernels[0]];
  const whole_layer = machine.kind === "layer";
  const start = whole_layer ? "A whole layer, projections included, not the kernel alone; " : "";
  const allows = `what this machine’s ${whole_layer ? "copy and product allow" : `${pace(...bound(machine, layer, choice))} allows`}`;
  if (found.microseconds === null) return `${start}${ours}: ${taken.get(ours)}. W${allows.slice(1)}: ${least} at best.`;
  const peers = [...taken].filter(([name, time]) => name !== ours && timed(time));
  const [fastest, time] = peers.reduce((best, peer) => (peer[1] < best[1] ? peer : best), [null, Infinity]);
  const compare = fastest === null ? "" : `; ${ratio(time / found.microseconds)} as fast as ${fastest}`;
  return `${start}${ours}: ${duration(found.microseconds)}, ${percent(found.share)} of ${allows}${compare}.`;
}

function limit_label(machine, layer, choice) {
  if (machine.kind === "layer") return "limit, measured copy or product";
  const what = { memory: "copy", arithmetic: "product" }[pace(...bound(machine, layer, choice))];
  return `limit, measured ${what}`;
}

// --- a bar for each time, and a line through all at the limit

const SCALE = 6; // times our time: longer bars of other kernels are cut, so that the near ones can be compared

function bars(machine, layer, choice) {
  const taken = [...times(machine, choice)];
  const { limit, microseconds } = quantities(machine, layer, choice);
  const longest = Math.max(limit, ...taken.map(([, time]) => time).filter(timed));
  const end = Math.min(longest, SCALE * Math.max(limit, microseconds ?? 0));
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
    row(limit_label(machine, layer, choice), "limit", limit),
  );
  list.style.setProperty("--limit", limit / end);
  return longest > end
    ? [list, h("p", { class: "mla-part-quiet" }, "A bar that fades goes on beyond the scale.")]
    : [list];
}

function numbers(machine, layer, choice) {
  const found = quantities(machine, layer, choice);
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
    .map(([label, name, written]) => quantity(label, name, found[name], written, "no time"));
}

// --- the view

function render(given) {
  const { model } = given;
  const { machines, layer: dims } = JSON.parse(model.get("data"));
  const layer = exact(dims);
  const values = (name) => [...new Set(machines.flatMap(({ axes }) => axes[name]))];
  const shared = {
    machine: { label: "machine", choices: machines.map(({ name }) => name) },
    ...Object.fromEntries(SETTINGS.map((name) => [name, { label: LABELS[name], choices: values(name) }])),
  };
  const view = new View(given, "measured-results", "What was measured", shared);
  const chart = h("div", { class: "mla-measured-bars" });
  const answers = h("dl");
  const about = h("p", { class: "mla-part-quiet mla-part-about" });

  const machine_of = (name) => machines.find((machine) => machine.name === name);
  const present = () => machine_of(model.get("machine"));
  const fitted = ({ axes }, choice) =>
    Object.fromEntries(SETTINGS.map((name) => [name, nearest(layer, axes[name], choice[name])]));
  const chosen = () => fitted(present(), Object.fromEntries(SETTINGS.map((name) => [name, model.get(name)])));
  const written = (value) => (timed(value) ? count(value) : value);

  function move(name) {
    const before = chosen();
    const after = fitted(machine_of(name), before);
    const moved = SETTINGS.filter((setting) => after[setting] !== before[setting]);
    const changes = moved.map(
      (setting) => `${LABELS[setting]}: ${written(before[setting])} became ${written(after[setting])}`,
    );
    view.set({ machine: name, ...after }, changes.length ? `${changes.join("; ")}, the nearest here.` : "");
  }
  const machine_picker = view.picker({
    name: "machine",
    label: "machine",
    choices: options(machines.map(({ name, title }) => [name, title])),
    take: move,
  });
  const pickers = SETTINGS.map((name) =>
    view.picker({
      name,
      label: LABELS[name],
      choices: [],
      read: () => chosen()[name],
      take: (text) => view.set({ [name]: present().axes[name].find((value) => `${value}` === text) }),
    }),
  );
  let offered = null; // the machine whose values the pickers hold

  function paint() {
    const [machine, choice] = [present(), chosen()];
    if (machine !== offered) {
      for (const [i, { select }] of pickers.entries()) {
        select.replaceChildren(...options(machine.axes[SETTINGS[i]].map((value) => [value, written(value)])));
      }
    }
    offered = machine;
    for (const picker of [machine_picker, ...pickers]) picker.paint();
    view.say(sentence(machine, layer, choice));
    chart.replaceChildren(...bars(machine, layer, choice));
    answers.replaceChildren(...numbers(machine, layer, choice));
    about.textContent = machine.about;
  }

  const figures = h("div", { class: "mla-measured-numbers" }, answers);
  const fields = controls([machine_picker, ...pickers]);
  return view.show(["machine", ...SETTINGS], paint, fields, view.note, view.summary, chart, figures, about);
}

export default { render };
