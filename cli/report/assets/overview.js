// The overview (tiles, evaluations, curves, shares of a step) and the configuration with its differences.

const CURVES = [
  ["Dev exact match (greedy)", ["dev/em"], [0, 1]],
  ["Reward", ["reward"]],
  ["Reward standard deviation", ["reward_std"]],
  ["Score of a judged turn", ["turns/score"]],
  ["KL to the reference (nats)", ["kl"]],
  ["Entropy (nats)", ["entropy"]],
  ["Policy tokens per trajectory", ["rollout/policy_tokens"]],
  ["Searches per question", ["rollout/searches"]],
  ["Gold passages found (dev)", ["dev/gold_recall"], [0, 1]],
  ["Answered", ["rollout/answered"], [0, 1]],
  ["Invalid turns", ["rollout/invalid_turns"], [0, 1]],
  ["Groups without advantage", ["groups/flat"], [0, 1]],
  ["Seconds per step", ["time/step", "step_time"]],
];

function overview() {
  const { runs } = state.data;
  const charts = CURVES.map(([title, names, bounds]) => chartOf(title, names, bounds)).filter(Boolean);
  const shares = runs.map((run) => shareChart(runs.length > 1 ? run.name : "All stages", stagesOf(run))).filter(Boolean);
  return [
    section("Runs", el("div", { class: "tiles" }, runs.map(tile))),
    ...(runs.some((run) => run.suite) ? [section("Suites", suites())] : []),
    ...runs.filter((run) => run.rounds).map((run) => section(runs.length > 1 ? `Rounds of ${run.name}` : "Rounds", table(run.rounds.columns, run.rounds.rows), quiet(run.rounds.note))),
    section("Evaluations", evaluations()),
    section("Curves by optimizer step", charts.length ? el("div", { class: "charts" }, charts) : quiet("No step was logged yet."), anyCurve(charts)),
    section("Time per stage of a step", shares.length ? el("div", { class: "charts" }, shares) : quiet("No timings were logged yet.")),
  ];
}

const section = (title, ...content) => el("section", {}, el("h2", {}, title), content);
const quiet = (text) => el("p", { class: "quiet" }, text);

function linesOf(names) {
  return state.data.runs.map((run, place) => {
    const name = names.find((candidate) => run.series[candidate]);
    return { run: place, label: state.data.runs.length > 1 ? run.name : "", points: name ? run.series[name] : [] };
  }).filter((line) => line.points.length);
}

function chartOf(title, names, bounds) {
  const lines = linesOf(names);
  return lines.length ? lineChart(title, lines, bounds) : null;
}

// Every other figure that was logged can be drawn too.
function anyCurve(charts) {
  const shown = new Set(CURVES.flatMap(([, names]) => names));
  const others = unique(state.data.runs.flatMap((run) => Object.keys(run.series))).filter((name) => !shown.has(name)).sort();
  if (!charts.length || !others.length) return null;
  const place = el("div", { class: "charts" });
  const draw = (name) => place.replaceChildren(...[name && chartOf(name, [name])].filter(Boolean));
  return el("div", { class: "more" }, select("Another figure", [["", "choose…"], ...others.map((name) => [name, name])], "", draw), place);
}

function stagesOf(run) {
  const order = ["time/generate", "time/retrieve", "time/score", "time/credit", "time/reference", "time/update"];
  const names = Object.keys(run.series).filter((name) => name.startsWith("time/") && name !== "time/step");
  names.sort((a, b) => (order.indexOf(a) + 99) % 99 - (order.indexOf(b) + 99) % 99 || a.localeCompare(b));
  return names.map((name) => [name.slice(5), run.series[name].filter((point) => point[1] !== null)]);
}

function tile(run, place) {
  const dev = (run.series["dev/em"] ?? []).filter((point) => point[1] !== null);
  const best = dev.reduce((found, point) => (point[1] > found[1] ? point : found), dev[0] ?? [0, null]);
  const steps = last(run.series["reward"] ?? [[0]])[0];
  const asked = run.suite ? [["sets", String(run.suite.sets.length)], ["questions", number(sum(run.suite.sets.map((one) => one.questions)))], ["beside each other", run.suite.systems.map((row) => row.name).join(" | ")]] : null;
  const facts = [
    ["state", run.finished ? "finished" : "in progress, or stopped"],
    ...(asked ?? [
    ["optimizer steps", number(steps)],
    ["dev EM, first", dev.length ? number(dev[0][1]) : "–"],
    ["dev EM, best", dev.length ? `${number(best[1])} at step ${best[0]}` : "–"],
    ["policy", run.config["policy.model"] ?? "tiny, from scratch"],
    ]),
    ["seed", run.config["seed"] ?? "–"],
  ];
  return el("div", { class: "tile" }, el("h3", { class: "run" + (place % 8) }, run.name), el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))])), run.gate ? quiet(`Gate before GRPO: ${run.gate}`) : null, quiet(run.path));
}

function evaluations() {
  const rows = state.data.runs.flatMap((run, place) => Object.entries(run.evaluations).map(([name, figures]) => [run, place, name, figures]));
  if (!rows.length) return quiet("No evaluation has finished yet.");
  const there = (found) => ([name]) => !/_recall$/.test(name) || found.some((figures) => figures[name] != null);
  const answers = [["em", "EM [95 %]"], ["f1", "F1 [95 %]"]], golds = [["gold_recall", "gold found"], ["alternatives_recall", "any gold"]];
  const columns = [...answers, ["n", "questions"], ...golds, ["searches", "searches"], ["answered", "answered"], ["invalid_turns", "invalid turns"], ["policy_tokens", "policy tokens"], ["unscored", "unscored"]]
    .filter(there(rows.map((row) => row[3])));
  const cell = (figures, name) => {
    const bounds = figures[name + "_interval"];
    return number(figures[name]) + (bounds ? ` [${number(bounds[0])}, ${number(bounds[1])}]` : "");
  };
  const figures = table(["run", "evaluation", ...columns.map(([, label]) => label)], rows.map(([run, place, name, figures]) => [
    el("span", { class: "value run" + (place % 8) }, run.name), name, ...columns.map(([column]) => cell(figures, column)),
  ]));
  const grouped = rows.filter(([run, , name]) => run.groups[name].length).map(([run, place, name]) => {
    const groups = run.groups[name], shown = [...answers, ["n", "questions"], ...golds, ["searches", "searches"]].filter(there(groups.map((group) => group[2])));
    const lines = groups.map(([group, depth, figures]) => [depth ? "" : group, depth ? group : "", ...shown.map(([column]) => cell(figures, column))]);
    return el("details", {}, el("summary", {}, el("span", { class: "value run" + (place % 8) }, run.name), ` ${name} by pack and kind`), table(["group", "kind", ...shown.map(([, label]) => label)], lines));
  });
  return [figures, quiet(state.data.intervals), ...grouped];
}

function table(head, rows) {
  const cells = (tag, row) => row.map((value, i) => el(tag, { class: i > 1 ? "figure" : null, scope: tag === "th" ? "col" : null }, value));
  return el("div", { class: "scroll", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {}, cells("th", head))), el("tbody", {}, rows.map((row) => el("tr", { class: row.differs ? "differs" : null }, cells("td", row))))));
}

function configuration() {
  const { runs } = state.data;
  const keys = unique(runs.flatMap((run) => Object.keys(run.config)));
  const shown = (run, key) => (key in run.config ? String(run.config[key]) : "");
  const differ = (key) => unique(runs.map((run) => shown(run, key))).length > 1;
  const row = (key) => Object.assign([key, ...runs.map((run) => shown(run, key))], { differs: runs.length > 1 && differ(key) });
  const head = ["setting", ...runs.map((run) => run.name)];
  const different = keys.filter(differ);
  const parts = [];
  if (runs.length > 1) parts.push(section("Differences", different.length ? table(head, different.map(row)) : quiet("The settings are the same.")));
  return [...parts, section("All settings", table(head, keys.map(row)))];
}
