// A recorded run of an engine: the counts of a step first, named as in Python, then the view.

function quantities({ frames }, step) {
  const { pages, requests } = frames[step];
  const sum = (all, number) => all.reduce((total, each) => total + Number(number(each)), 0);
  const in_state = (all, state) => sum(all, (each) => each.state === state);
  return {
    computed: sum(requests, (request) => request.spent),
    held: in_state(pages, "held"),
    idle: in_state(pages, "idle"),
    free: in_state(pages, "free"),
    saved: sum(pages, (page) => (page.state === "held" ? page.names.length - 1 : 0)),
    running: in_state(requests, "running"),
    waiting: in_state(requests, "waiting"),
    written: sum(requests, (request) => request.written),
  };
}

// --- words

const holders = ({ state, names }) =>
  state === "held"
    ? `held by ${names.join(" and ")}`
    : names.length
      ? `idle, with the text of ${names.join(" and ")}`
      : state;

const described = (pages) => pages.map((page, number) => `page ${number} ${holders(page)}`).join("; ");

// --- the drawing: a box for each page, as full as it is

const COLUMNS = 5;
const [BOX, GAP, TALL] = [{ width: 66, height: 40 }, 6, 54];

function box(page, number, size) {
  const [x, y] = [(number % COLUMNS) * (BOX.width + GAP) + 1, Math.floor(number / COLUMNS) * TALL + 1];
  const colour = page.state === "idle" ? "var(--bar)" : "var(--key)";
  const strength = page.state === "held" && page.names.length > 1 ? 0.5 : 0.25;
  const frame = { x, y, width: BOX.width, height: BOX.height, fill: "none", stroke: "var(--quiet)" };
  const dashes = page.state === "free" ? { "stroke-dasharray": "3 3" } : {};
  const width = (BOX.width * page.filled) / size;
  const text = [page.state === "held" ? "" : page.state, page.names.join(" ")].filter(Boolean).join(", ");
  return svg(
    "g",
    { "data-page": number, "data-state": page.state },
    svg("rect", { x, y, width, height: BOX.height, fill: colour, "fill-opacity": strength }),
    svg("rect", { ...frame, ...dashes }),
    svg("text", { x: x + 5, y: y + 14 }, String(number)),
    svg(
      "text",
      { x: x + BOX.width / 2, y: y + 31, "text-anchor": "middle", class: page.state === "held" ? "mla-held" : null },
      text,
    ),
  );
}

// --- the view

const PACE = 1500; // milliseconds that a step stays while the run plays

function render(given) {
  const { model } = given;
  const run = JSON.parse(model.get("data"));
  const last = run.frames.length - 1;
  const size = Math.max(1, ...run.frames.flatMap(({ pages }) => pages.map((page) => page.filled)));
  const rows = Math.ceil(run.frames[0].pages.length / COLUMNS);
  const shared = { step: { label: "step", limits: [0, last] } };
  const view = new View(given, "engine-stepper", "A run of the engine, step by step", shared);
  const picture = svg("svg", {
    viewBox: `0 0 ${COLUMNS * (BOX.width + GAP) - GAP + 2} ${rows * TALL - 12}`,
    role: "img",
  });
  const numbers = h("dl");
  const tables = h("tbody");
  const step_field = view.number_field({
    name: "step",
    label: `step, of ${last}`,
    limits: [0, last],
    slider: "linear",
    take(step, said) {
      player.stop();
      view.set({ step }, said);
    },
  });
  const player = view.player({ name: "step", last: () => last, pace: PACE, more: ["previous", "next"] });

  function paint() {
    const step = Math.min(model.get("step"), last);
    const { events, pages, requests } = run.frames[step];
    const found = quantities(run, step);

    step_field.paint();
    view.say(`${step ? `Step ${step}: ` : ""}${events.join("; ")}.`);
    picture.replaceChildren(...pages.map((page, number) => box(page, number, size)));
    picture.setAttribute("aria-label", `The pages after step ${step}: ${described(pages)}.`);
    const row = (label, name) => quantity(label, name, found[name], count);
    numbers.replaceChildren(
      row("tokens computed", "computed"),
      row("pages held", "held"),
      row("pages idle", "idle"),
      row("pages free", "free"),
      row("pages saved by sharing", "saved"),
      row("requests running", "running"),
      row("requests waiting", "waiting"),
      row("tokens written so far", "written"),
    );
    tables.replaceChildren(
      ...requests.map((request) =>
        h(
          "tr",
          { "data-request": request.name },
          h("th", { scope: "row" }, request.name),
          h("td", {}, request.state),
          h("td", {}, `${request.computed} of ${request.known}`),
          h("td", {}, request.pages.join(" ") || "none"),
        ),
      ),
    );
  }

  const heads = ["request", "state", "tokens computed", "block table"];
  const table = h(
    "table",
    {},
    h("thead", {}, h("tr", {}, ...heads.map((head) => h("th", { scope: "col" }, head)))),
    tables,
  );
  const fields = controls([step_field, player]);
  const answer = h("div", { class: "mla-part-answer" }, h("div", {}, picture, table), numbers);
  const forget = view.show(["step"], paint, fields, view.note, view.summary, answer);
  return () => {
    player.stop();
    forget();
  };
}

export default { render };
