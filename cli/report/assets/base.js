// What every part shares: making elements, numbers for people, and the data.
// Text from runs goes into the page through el() as text nodes and through setAttribute, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const state = { data: null, tab: "overview", view: "turns", mask: false, ids: false, key: null, filter: {} };

function el(tag, options = {}, ...children) {
  return fill(document.createElement(tag), options, children);
}

function svg(tag, options = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), options, children);
}

function fill(node, options, children) {
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return value.toFixed(Math.max(0, digits - Math.max(0, Math.floor(Math.log10(size)))));
}

function signed(value) {
  if (value === null || value === undefined) return "–";
  return (value > 0 ? "+" : "") + number(value, 2);
}

const counted = (count, one, many) => `${count} ${count === 1 ? one : many}`;
const percent = (share) => (100 * share).toFixed(share < 0.1 ? 1 : 0) + " %";
const sum = (values) => values.reduce((total, value) => total + value, 0);
const last = (values) => values[values.length - 1];
const unique = (values) => [...new Set(values)];
const runOf = (row) => state.data.sources[row.s].run;
const questionOf = (row) => state.data.tables.questions[row.q];
const typeOf = (question) => [question.pack, question.kind].filter(Boolean).join(" ");
const sourceOf = (row) => state.data.sources[row.s];
const searchesOf = (row) => sum(row.t.map((turn) => (turn.k === "search" ? turn.n ?? 1 : 0)));

function select(label, choices, value, onchange) {
  const options = choices.map(([name, text]) => el("option", { value: name, selected: name === value }, text));
  return el("label", {}, el("span", {}, label), el("select", { onchange: (event) => onchange(event.target.value) }, options));
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

async function embedded() {
  const text = document.getElementById("data").textContent;
  return inflate(Uint8Array.fromBase64 ? Uint8Array.fromBase64(text) : decoded(atob(text)));
}

function decoded(text) {
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return bytes;
}

// Data as the page uses it: every row knows its place, and a name that stays the same when a run goes on.
function prepare(data) {
  const members = new Map();
  data.rows.forEach((row, place) => {
    row.place = place;
    const group = [row.s, row.step ?? "", row.g ?? "", row.q].join("/");
    const member = members.get(group) ?? 0;
    members.set(group, member + 1);
    const source = data.sources[row.s];
    row.key = [data.runs[source.run].name, source.name, row.step ?? "", row.g ?? "", data.tables.questions[row.q].id, member].join("|");
  });
  data.byKey = new Map(data.rows.map((row) => [row.key, row]));
  return data;
}

// Part of the address after #, so that a view can be linked to.
function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (["overview", "configuration", "trajectories"].includes(given.get("tab"))) state.tab = given.get("tab");
  if (["turns", "group", "compare"].includes(given.get("view"))) state.view = given.get("view");
  state.mask = given.get("mask") === "1";
  state.ids = given.get("ids") === "1";
  const place = given.get("i");
  if (place !== null && state.data.rows[Number(place)]) state.key = state.data.rows[Number(place)].key;
}

function writeAddress() {
  const parts = { tab: state.tab };
  const row = state.data.byKey.get(state.key);
  if (state.tab === "trajectories") {
    if (row) parts.i = row.place;
    parts.view = state.view;
    if (state.mask) parts.mask = 1;
    if (state.ids) parts.ids = 1;
  }
  history.replaceState(null, "", "#" + new URLSearchParams(parts));
}
