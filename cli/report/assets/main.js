// Tabs, keys, and following a run that is going on.

const TABS = { overview: ["Overview", overview], configuration: ["Configuration", configuration], trajectories: ["Trajectories", browser], changes: ["Changes", changes] };
const KEYS = [["1 2 3 4", "overview, configuration, trajectories, changes"], ["j k", "next, previous trajectory or question"], ["/", "search the text"], ["m", "loss mask"], ["i", "token ids and log-probs"], ["g", "the group side by side"], ["c", "first and last checkpoint"], ["t", "one trajectory"], ["Esc", "leave an input field"], ["?", "these keys"]];

function draw() {
  const tabs = Object.entries(TABS).map(([name, [label]]) => el("button", { type: "button", role: "tab", id: "tab-" + name, "aria-selected": String(state.tab === name), "aria-controls": "view", onclick: () => open(name) }, label));
  document.getElementById("tabs").replaceChildren(...tabs);
  const runs = state.data.runs.map((run, place) => el("span", { class: "value run" + (place % 8) }, run.name + (run.finished ? "" : " …")));
  document.getElementById("runs").replaceChildren(...runs);
  document.getElementById("notes").replaceChildren(...state.data.left_out.map((text) => el("span", {}, "Left out: " + text + ".")));
  const view = document.getElementById("view");
  view.setAttribute("role", "tabpanel");
  view.setAttribute("aria-labelledby", "tab-" + state.tab);
  view.className = state.tab;
  view.replaceChildren(...TABS[state.tab][1]());
  document.querySelector("#list [aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  writeAddress();
}

function open(name) {
  state.tab = name;
  draw();
  document.getElementById("tab-" + name).focus();
}

function view(name) {
  state.view = name;
  drawDetail(document.getElementById("detail"));
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !state.data) return;
  const field = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && field) return field.blur();
  if (field) return;
  const anywhere = { 1: () => open("overview"), 2: () => open("configuration"), 3: () => open("trajectories"), 4: () => open("changes"), "?": help };
  const browsing = { j: () => move(1), k: () => move(-1), m: () => flip("mask"), i: () => flip("ids"), g: () => view("group"), c: () => view("compare"), t: () => view("turns") };
  if (event.target.id === "list") Object.assign(browsing, { ArrowDown: browsing.j, ArrowUp: browsing.k });
  if (event.key === "/") {
    if (state.tab !== "trajectories") open("trajectories");
    document.getElementById("search").focus();
    event.preventDefault();
    return;
  }
  const changing = { j: () => step(1), k: () => step(-1), m: () => { state.mask = !state.mask; draw(); } };
  if (event.target.id === "list") Object.assign(changing, { ArrowDown: changing.j, ArrowUp: changing.k });
  const action = anywhere[event.key] ?? { trajectories: browsing, changes: changing }[state.tab]?.[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

function help() {
  const box = document.getElementById("help");
  box.hidden = !box.hidden;
  document.getElementById("help-button").setAttribute("aria-expanded", String(!box.hidden));
  box.replaceChildren(el("dl", {}, KEYS.map(([keys, what]) => [el("dt", {}, el("kbd", {}, keys)), el("dd", {}, what)])));
}

// Follow a run in progress: poll every few seconds; open and selected items stay, and a field keeps its cursor.
async function follow() {
  try {
    const answer = await fetch("data", { cache: "no-cache" });
    if (!answer.ok) throw new Error(answer.status + " " + answer.statusText);
    const tag = answer.headers.get("ETag");
    if (tag !== state.tag) {
      const first = state.data === null;
      const data = prepare(await inflate(await answer.arrayBuffer()));
      if (!document.activeElement?.closest("input, select")) {
        state.data = data;
        state.tag = tag;
        if (first) readAddress();
        redraw();
      }
    }
  } catch (error) {
    document.getElementById("notes").textContent = `Cannot update the run (${error.message}); the page may be out of date.`;
  }
  setTimeout(follow, 3000);
}

function redraw() {
  const top = [document.getElementById("list")?.scrollTop, window.scrollY];
  draw();
  const list = document.getElementById("list");
  if (list && top[0]) list.scrollTop = top[0];
  window.scrollTo(0, top[1]);
}

async function start() {
  document.addEventListener("keydown", press);
  document.getElementById("help-button").addEventListener("click", help);
  if (document.getElementById("data").dataset.live) return follow();
  try {
    state.data = prepare(await embedded());
  } catch (error) {
    document.getElementById("view").textContent = "This page cannot be read: " + error.message;
    return;
  }
  readAddress();
  draw();
  document.documentElement.dataset.ready = Math.round(performance.now());
}

window.addEventListener("hashchange", () => { if (state.data) { readAddress(); draw(); } });
start();
