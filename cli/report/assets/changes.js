// Two checkpoints, or any two that answered the same questions: which answers changed, and both trajectories.

const WAYS = { better: "wrong → right", worse: "right → wrong", right: "right in both", wrong: "wrong in both" };

function changes() {
  const { systems, pairs } = state.data.changes;
  if (!pairs.length) return [quiet("Two evaluations of the same questions are needed.")];
  if (!pairOf(state.a, state.b)) Object.assign(state, { a: pairs[0].a, b: last(pairs.filter((pair) => pair.a === pairs[0].a)).b });
  const names = systems.map((system, place) => [String(place), nameOf(system)]);
  const choose = (side, label) => select(label, names, String(state[side]), (value) => { state[side] = Number(value); state.asked = null; draw(); });
  const pair = pairOf(state.a, state.b);
  const kinds = pair ? sorted_() : {};
  const ways = Object.entries(WAYS).map(([way, label]) => el("button", { type: "button", id: "way-" + way, "aria-pressed": String(state.way === way), onclick: () => { state.way = way; state.asked = null; draw(); } }, `${label} ${kinds[way]?.length ?? 0}`));
  const head = el("div", { class: "between" }, choose("a", "First"), choose("b", "Then"), el("div", { class: "switches" }, pair ? ways : []));
  if (!pair) return [head, quiet(state.a === state.b ? "Choose two different ones." : "They share no question.")];
  return [head, el("p", { id: "paired" }, tested(pair)), shownChanges(kinds[state.way])];
}

const nameOf = (system) => (state.data.runs.length > 1 ? state.data.runs[system.run].name + ": " : "") + system.name;

// The paired test of b - a, whichever of them comes first in the data.
function pairOf(a, b) {
  const straight = state.data.changes.pairs.find((pair) => pair.a === a && pair.b === b);
  if (straight) return straight;
  const back = state.data.changes.pairs.find((pair) => pair.a === b && pair.b === a);
  return back && { ...back, a, b, difference: -back.difference, low: -back.high, high: -back.low };
}

function tested(pair) {
  const { systems } = state.data.changes;
  const shared = sharedAnswers();
  const mean = (side) => number(sum(shared.map((row) => row[side])) / shared.length);
  const how = pair.method === "mcnemar" ? "McNemar, exact; Newcombe's interval" : "paired bootstrap";
  return `${pair.n} questions: EM ${mean(1)} (${nameOf(systems[pair.a])}), ${mean(2)} (${nameOf(systems[pair.b])}); `
    + `difference ${signed(pair.difference)} [${signed(pair.low)}, ${signed(pair.high)}], p = ${number(pair.p_value)} (${how})`;
}

// [question, EM in the first, EM in the second] of what both answered.
function sharedAnswers() {
  const { systems } = state.data.changes;
  const then = new Map(systems[state.b].answers);
  return systems[state.a].answers.filter(([asked]) => then.has(asked)).map(([asked, before]) => [asked, before, then.get(asked)]);
}

function sorted_() {
  const found = { better: [], worse: [], right: [], wrong: [] };
  for (const row of sharedAnswers()) found[row[2] > row[1] ? "better" : row[2] < row[1] ? "worse" : row[1] > 0 ? "right" : "wrong"].push(row);
  return found;
}

function shownChanges(rows) {
  if (!rows.length) return quiet("No question is of this kind.");
  if (!rows.some(([asked]) => asked === state.asked)) state.asked = rows[0][0];
  const list = el("ol", { id: "list", role: "listbox", "aria-label": "Questions", tabindex: 0, "aria-activedescendant": "asked" + state.asked });
  list.append(...rows.map(([asked, before, after]) => el("li", { role: "option", id: "asked" + asked, "aria-selected": String(asked === state.asked), onclick: () => pick(asked) },
    el("b", { class: "reward " + (after > before ? "good" : after < before ? "bad" : "unscored") }, signed(after - before)), el("span", { class: "what" }, state.data.changes.asked[asked][1]))));
  list.rows = rows.map(([asked]) => asked);
  const detail = el("article", { id: "detail", "aria-live": "polite" }, bothSides());
  return el("div", { class: "browser" }, el("div", { class: "side" }, list), detail);
}

function pick(asked) {
  state.asked = asked;
  const list = document.getElementById("list");
  for (const item of list.querySelectorAll("[aria-selected=true]")) item.setAttribute("aria-selected", "false");
  const item = document.getElementById("asked" + asked);
  item?.setAttribute("aria-selected", "true");
  item?.scrollIntoView({ block: "nearest" });
  list.setAttribute("aria-activedescendant", "asked" + asked);
  document.getElementById("detail").replaceChildren(...bothSides());
  writeAddress();
}

function step(by) {
  const list = document.getElementById("list");
  if (!list) return;
  pick(list.rows[Math.min(Math.max(list.rows.indexOf(state.asked) + by, 0), list.rows.length - 1)]);
}

function bothSides() {
  const [id, text] = state.data.changes.asked[state.asked];
  const sides = [state.a, state.b].map((place) => {
    const system = state.data.changes.systems[place];
    return [system, system.sources.flatMap((source) => state.data.asked.get(JSON.stringify([source, id, text])) ?? [])];
  });
  const row = sides.flatMap(([, rows]) => rows)[0];
  const answers = row ? questionOf(row).answers : [];
  const side = ([system, rows]) => rows.length
    ? rows.map((one) => column(one, nameOf(system) + (rows.length > 1 ? `, ${sourceOf(one).name}` : ""), ["reward", "ended by", "searches", "tokens", "from"]))
    : [el("div", { class: "column" }, el("h3", {}, nameOf(system)), quiet("This trajectory was left out to keep the page small."))];
  return [el("h2", {}, text), el("p", {}, el("span", { class: "quiet" }, "accepted "), answers.map((answer) => [el("b", { class: "accepted" }, answer), " "]), el("span", { class: "quiet" }, " " + id)),
    el("div", { class: "columns two", tabindex: 0 }, sides.flatMap(side))].flat();
}

// The tables of suites: whatever answers against the sets, below one another those of runs with the same questions.
function suites() {
  const found = state.data.runs.map((run, place) => [run, place]).filter(([run]) => run.suite);
  const asked = (run) => JSON.stringify(run.suite.sets.map((one) => [one.name, one.sha256]));
  return unique(found.map(([run]) => asked(run))).flatMap((same) => {
    const members = found.filter(([run]) => asked(run) === same);
    const { sets } = members[0][0].suite;
    const others = unique(members.flatMap(([run]) => run.suite.systems.flatMap((row) => Object.keys(row.others))));
    const share = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1));
    const best = (pick_) => Math.max(...members.flatMap(([run]) => run.suite.systems.map(pick_)).filter((value) => value !== null));
    const marked = (value, most) => (value !== null && value === most ? el("b", {}, share(value)) : share(value));
    const rows = members.flatMap(([run, place]) => run.suite.systems.map((row) => [
      el("span", { class: "value run" + (place % 8) }, run.name), row.name,
      ...sets.map(({ name }) => marked(row.sets[name], best((other) => other.sets[name]))),
      [marked(row.mean[0], best((other) => other.mean[0])), row.mean[1] === null ? "" : ` [${share(row.mean[1])}, ${share(row.mean[2])}]`],
      ...others.map((name) => number(row.others[name])),
    ]));
    const head = sets.map((one) => `${one.group ? one.group + "\n" : ""}${one.title}\nn = ${one.questions}`);
    return [table(["run", "EM, %", ...head, "Avg. [95 %]", ...others.map((name) => name.replace("_", " "))], rows),
      quiet("Avg.: the mean over sets, each of equal weight. The highest of a column is bold; whether it is higher by more than chance stands under Changes.")];
  });
}
