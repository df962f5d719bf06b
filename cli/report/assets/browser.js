// The browser of trajectories: filters, the list, one trajectory, its group, and two checkpoints side by side.

const PAGE = 200;

const FILTERS = {
  run: (row, value) => state.data.runs[runOf(row)].name === value,
  source: (row, value) => sourceOf(row).name === value,
  reward: (row, value) => ({ positive: row.w > 0, none: row.w !== null && row.w <= 0, unscored: row.w === null })[value],
  from: (row, value) => row.w !== null && row.w >= Number(value),
  to: (row, value) => row.w !== null && row.w <= Number(value),
  kind: (row, value) => typeOf(questionOf(row)) === value,
  searches: (row, value) => searchesOf(row) === Number(value),
  stop: (row, value) => row.stop === value,
  change: (row, value) => changeOf(row) === value,
  text: (row, value) => haystack(row).includes(value.toLowerCase()),
};

function haystack(row) {
  row.haystack ??= [questionOf(row).text, questionOf(row).id, ...questionOf(row).answers, ...row.t.flatMap((turn) => [turn.x, turn.o, ...turn.h.map(([place]) => state.data.tables.passages[place].join(" "))])].join("\n").toLowerCase();
  return row.haystack;
}

// So many rows of the list are drawn that the one at place is among them.
const upTo = (place) => Math.max(1, Math.ceil((place + 1) / PAGE)) * PAGE;

function shownRows() {
  const active = Object.entries(state.filter).filter(([, value]) => value !== "" && value !== undefined);
  return state.data.rows.filter((row) => active.every(([name, value]) => FILTERS[name](row, value)));
}

function browser() {
  const list = el("ol", { id: "list", role: "listbox", "aria-label": "Trajectories", tabindex: 0 });
  const detail = el("article", { id: "detail", "aria-live": "polite" });
  const count = el("p", { class: "quiet", id: "count" });
  const refresh = () => {
    const rows = shownRows();
    count.textContent = `${rows.length} of ${state.data.rows.length} trajectories`;
    if (!rows.some((row) => row.key === state.key)) state.key = rows[0]?.key ?? null;
    drawList(list, rows, upTo(rows.findIndex((row) => row.key === state.key)));
    drawDetail(detail);
  };
  const parts = [el("div", { class: "side" }, filters(refresh), count, list), detail];
  refresh();
  return [el("div", { class: "browser" }, parts)];
}

function filters(refresh) {
  const { rows, runs, sources } = state.data;
  const set = (name) => (value) => { state.filter[name] = value; refresh(); };
  const choose = (name, label, values) => select(label, [["", "any"], ...values.map((value) => (Array.isArray(value) ? value : [String(value), String(value) || "none"]))], state.filter[name] ?? "", set(name));
  const bound = (name, label) => el("label", {}, el("span", {}, label), el("input", { type: "number", step: "any", value: state.filter[name] ?? "", oninput: (event) => set(name)(event.target.value) }));
  const search = el("input", { type: "search", id: "search", placeholder: "question, thoughts, passages", value: state.filter.text ?? "", oninput: (event) => set("text")(event.target.value) });
  return el("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    el("label", { class: "wide" }, el("span", {}, "Text"), search),
    runs.length > 1 ? choose("run", "Run", runs.map((run) => run.name)) : null,
    choose("source", "From", unique(sources.map((source) => source.name))),
    choose("kind", "Type", unique(rows.map((row) => typeOf(questionOf(row)))).sort()),
    choose("reward", "Reward", [["positive", "above 0"], ["none", "0 or less"], ["unscored", "unscored"]]),
    bound("from", "Reward from"), bound("to", "Reward to"),
    choose("searches", "Searches", unique(rows.map(searchesOf)).sort((a, b) => a - b)),
    choose("stop", "Ended by", unique(rows.map((row) => row.stop)).sort()),
    choose("change", "First to last", [["better", "got better"], ["worse", "got worse"]]),
    el("button", { type: "button", onclick: () => { state.filter = {}; draw(); } }, "Clear"));
}

function drawList(list, rows, upto) {
  list.replaceChildren(...rows.slice(0, upto).map((row) => el("li", { role: "option", id: "row" + row.place, "aria-selected": String(row.key === state.key), onclick: () => choose(row) }, line(row))));
  list.rows = rows;
  list.upto = upto;
  list.setAttribute("aria-activedescendant", "row" + (state.data.byKey.get(state.key)?.place ?? ""));
  if (rows.length > upto) list.append(el("li", { class: "more" }, el("button", { type: "button", onclick: () => drawList(list, rows, upto + PAGE) }, `${rows.length - upto} more`)));
}

function line(row) {
  const question = questionOf(row);
  const where = row.step === undefined ? sourceOf(row).name : `step ${row.step + 1}, group ${row.g + 1}`;
  const run = state.data.runs.length > 1 ? el("i", { class: "swatch run" + (runOf(row) % 8) }) : null;
  return [el("b", { class: "reward " + (row.w === null ? "unscored" : row.w > 0 ? "good" : "bad") }, row.w === null ? "?" : number(row.w, 2)), el("span", { class: "what" }, question.text),
    el("small", {}, run, [where, typeOf(question), counted(searchesOf(row), "search", "searches"), row.stop === "answer" ? "" : row.stop].filter(Boolean).join(" · "))];
}

function choose(row) {
  state.key = row.key;
  const list = document.getElementById("list");
  const place = list.rows.indexOf(row);
  if (place >= list.upto) drawList(list, list.rows, upTo(place));
  for (const item of list.querySelectorAll("[aria-selected=true]")) item.setAttribute("aria-selected", "false");
  const item = document.getElementById("row" + row.place);
  item?.setAttribute("aria-selected", "true");
  item?.scrollIntoView({ block: "nearest" });
  list.setAttribute("aria-activedescendant", "row" + row.place);
  drawDetail(document.getElementById("detail"));
}

function move(by) {
  const list = document.getElementById("list");
  const place = list.rows.findIndex((row) => row.key === state.key);
  const next = list.rows[Math.min(Math.max(place + by, 0), list.rows.length - 1)];
  if (next) choose(next);
}

function drawDetail(detail) {
  const row = state.data.byKey.get(state.key);
  writeAddress();
  if (!row) return detail.replaceChildren(quiet("No trajectory matches the filters."));
  const question = questionOf(row);
  const views = { turns: () => [factList(row), state.mask ? tokensOf(row) : turnsOf(row)], group: () => groupOf(row), compare: () => compared(row) };
  const content = views[state.view]();
  return detail.replaceChildren(
    el("h2", {}, question.text),
    el("p", {}, el("span", { class: "quiet" }, "accepted "), question.answers.map((answer) => [el("b", { class: "accepted" }, answer), " "]),
      question.titles.length ? [el("span", { class: "quiet" }, question.any ? " any of " : " supporting "), question.titles.join(" | ")] : null,
      question.gold.length ? el("span", { class: "quiet" }, ` gold ${question.gold.join(" | ")}`) : null,
      el("span", { class: "quiet" }, ` ${question.id} ${typeOf(question)}`)),
    el("div", { class: "switches" }, viewButton("turns", "One trajectory"), viewButton("group", "Its group (g)"), viewButton("compare", "First and last checkpoint (c)"), toggle("mask", "Loss mask (m)"), toggle("ids", "Token ids (i)")),
    ...content.flat(2).filter(Boolean));
}

const viewButton = (name, label) => el("button", { type: "button", "aria-pressed": String(state.view === name), onclick: () => { state.view = name; drawDetail(document.getElementById("detail")); } }, label);
const toggle = (name, label) => el("button", { type: "button", "aria-pressed": String(state[name]), onclick: () => flip(name) }, label);

function flip(name) {
  state[name] = !state[name];
  if (name === "ids" && state.ids) state.mask = true;
  if (name === "mask" && !state.mask) state.ids = false;
  drawDetail(document.getElementById("detail"));
}

function column(row, title, names) {
  return el("div", { class: row.key === state.key ? "column chosen" : "column" }, el("h3", {}, title), factList(row, names), state.mask ? tokensOf(row) : turnsOf(row));
}

function groupOf(row) {
  if (!sourceOf(row).training) return [quiet("An evaluation asks each question once, so there is no group.")];
  const group = state.data.rows.filter((other) => other.s === row.s && other.step === row.step && other.g === row.g);
  const rewards = group.map((other) => other.w).filter((value) => value !== null);
  const mean = rewards.length ? sum(rewards) / rewards.length : null;
  const title = (other) => `reward ${other.w === null ? "unscored" : number(other.w, 2)}, advantage ${signed(other.a)}`;
  return [el("p", { class: "quiet" }, `${group.length} rollouts of step ${row.step + 1}, group ${row.g + 1}; mean reward ${number(mean)}. An advantage above 0 makes a rollout's tokens more likely.`),
    el("div", { class: "columns", tabindex: 0 }, group.map((other) => column(other, title(other), ["ended by", "searches", "tokens"])))];
}

// Rows of the same question in the same run, earliest checkpoint first, in the mode of the last one.
function history_(row) {
  const mode = (other) => /-(direct|cot|rag|search)$/.exec(sourceOf(other).name)?.[1] ?? "search";
  const id = questionOf(row).id;
  const same = state.data.rows.filter((other) => runOf(other) === runOf(row) && questionOf(other).id === id);
  const asked = same.filter((other) => sourceOf(other).training === sourceOf(row).training && mode(other) === mode(row));
  const when = (other) => [...sourceOf(other).order, other.step ?? 0];
  return asked.sort((a, b) => when(a).map((value, i) => value - when(b)[i]).find((value) => value) ?? 0);
}

function changeOf(row) {
  const all = sourceOf(row).training ? [] : history_(row);
  if (all.length < 2 || all[0].w === null || last(all).w === null) return "";
  return last(all).w > all[0].w ? "better" : last(all).w < all[0].w ? "worse" : "same";
}

function compared(row) {
  const all = history_(row);
  if (all.length < 2) return [quiet("This question was asked at one checkpoint only."), column(row, sourceOf(row).name)];
  const names = ["reward", "ended by", "searches", "tokens"];
  const name = (other) => (other.step === undefined ? sourceOf(other).name : `rollout of step ${other.step + 1}`);
  return [el("p", { class: "quiet" }, `Asked at ${all.length} points of the run.`), el("div", { class: "columns two", tabindex: 0 }, column(all[0], "First: " + name(all[0]), names), column(last(all), "Last: " + name(last(all)), names))];
}
