// One trajectory: its turns in colour, or its tokens with the loss mask.

const TAG = /(<\/?(?:think|search|answer|information|tool_call|tool_response)>)/;

// Text of the policy: what stands between tags has the look of the tag. Inside a thought, other tags are mentions.
function spoken(text, thinking) {
  let look = thinking ? "think" : "plain";
  return text.split(TAG).filter(Boolean).map((piece) => {
    const tag = /^<(\/?)(\w+)>$/.exec(piece);
    if (!tag || !TAG.test(piece) || (look === "think" && piece !== "</think>")) return el("span", { class: look }, piece);
    const name = tag[2];
    if (!tag[1]) look = name;
    const node = el("span", { class: "tag " + name }, piece);
    if (tag[1]) look = "plain";
    return node;
  });
}

// What its turns earned by themselves, and the advantages that made them likelier or less likely.
function earned(row, place) {
  const score = row.ts?.[place];
  const advantage = row.as?.length === row.t.length ? row.as[place] : row.as ? undefined : row.a;
  const parts = [score === undefined || score === null ? null : `score ${number(score)}`,
    advantage === undefined || advantage === null ? null : `advantage ${signed(advantage)}`];
  return (row.ts || row.as) && parts.some(Boolean) ? el("p", { class: "quiet earned" }, parts.filter(Boolean).join(", ")) : null;
}

function turnsOf(row) {
  const given = row.given?.length ? el("div", { class: "turn" }, el("h4", {}, "Given with the question"), hitList(row.given)) : null;
  return [given, ...row.t.map((turn, place) => el("div", { class: "turn" },
    el("h4", {}, `Turn ${place + 1}: ${turn.k}`, el("small", {}, ` policy ${turn.v}, ended by ${turn.f}`)),
    earned(row, place),
    el("pre", { class: "policy" }, spoken(turn.x, turn.i)),
    turn.k === "invalid" ? el("p", { class: "invalid" }, "invalid: " + turn.c) : null,
    turn.k === "call" ? el("p", { class: "called" }, "called: " + turn.c) : null,
    turn.e ? el("p", { class: "invalid" }, "failed: " + turn.e) : null,
    hitList(turn.h),
    turn.o ? el("pre", { class: "information" }, turn.o.replace(/^\n+|\n+$/g, "")) : null,
  ))];
}

function hitList(hits) {
  if (!hits.length) return null;
  return el("ol", { class: "hits" }, hits.map(([place, score, gold]) => {
    const [id, title] = state.data.tables.passages[place];
    const page = state.data.tables.pages[place];
    return el("li", {}, el("b", {}, title || id), ` ${number(score)} `, gold ? el("span", { class: "gold" }, "gold") : null, el("small", {}, " " + id),
      page ? el("img", { class: "page", src: "data:image/jpeg;base64," + page, alt: "page " + id, tabindex: 0 }) : null);
  }));
}

const MASKS = ["prompt", "policy", "environment"];

// Every token once: coloured where the policy sampled it, that is, where the loss reads it.
function tokensOf(row) {
  if (!row.seg) return quiet("The token ids of this trajectory were left out to keep the page small.");
  const run = state.data.runs[runOf(row)];
  const words = run.vocabulary === null ? {} : state.data.vocabularies[run.vocabulary];
  let turn = -1, sampled = 0;
  const spans = row.seg.flatMap(([source, ids, logprobs]) => {
    const list = source === 0 ? state.data.tables.prompts[ids] : ids;
    const before = sampled;
    if (source === 1) { turn += 1; sampled += ids.length; }
    const advantage = (place) => (source !== 1 ? undefined : !row.as ? row.a : row.as.length === row.t.length ? row.as[turn] : row.as[before + place]);
    return list.map((id, place) => token(id, words[id], MASKS[source], logprobs?.[place], advantage(place)));
  });
  const key = el("p", { class: "quiet" }, el("span", { class: "token policy" }, "sampled by the policy: mask 1, trained on"), " ",
    el("span", { class: "token environment" }, "inserted: mask 0"), " ", el("span", { class: "token prompt" }, "prompt: mask 0"), " ",
    el("span", { class: "token policy unsure" }, "underlined: sampled with a chance below one half"));
  const turns = row.ts || row.as ? el("ol", { class: "quiet earnings" }, row.t.map((_, place) => el("li", {}, earned(row, place) ?? "not judged"))) : null;
  return [key, turns, el("div", { class: state.ids ? "tokens with-ids" : "tokens" }, spans)];
}

function token(id, text, source, thousandths, advantage) {
  const said = text === undefined || text === "" ? "⟨" + id + "⟩" : text.replace(/\n/g, "⏎\n");
  const chance = thousandths === undefined ? null : thousandths / 1000;
  const unsure = chance !== null && chance < -0.7 ? " unsure" : "";
  const title = `id ${id}, ${source}, mask ${source === "policy" ? 1 : 0}` + (chance === null ? "" : `, log-prob ${chance}`)
    + (advantage === undefined || advantage === null ? "" : `, advantage ${signed(advantage)}`);
  return el("span", { class: "token " + source + unsure, title }, said, state.ids ? el("small", {}, String(id) + (chance === null ? "" : " " + chance.toFixed(2))) : null);
}

function facts(row) {
  const parts = Object.entries(row.p).map(([name, value]) => `${name} ${number(value)}`).join(", ");
  const [prompt, policy, environment] = row.n;
  return [
    ["reward", (row.w === null ? "unscored" : number(row.w)) + (parts ? ` (${parts})` : "")],
    ["advantage", row.a === undefined ? null : signed(row.a) + (row.as ? " in the mean of its tokens" : "")],
    ["ended by", row.stop],
    ["failure", row.fail ?? null],
    ["searches", searchesOf(row)],
    ["tokens", `prompt ${prompt}, policy ${policy}, environment ${environment}`],
    ["seconds", Object.entries(row.sec).map(([name, value]) => `${name} ${number(value, 2)}`).join(", ")],
    ["from", sourceOf(row).name + (row.step === undefined ? "" : ` of step ${row.step + 1}, group ${row.g + 1}`)],
  ].filter(([, value]) => value !== null && value !== "");
}

function factList(row, names) {
  const chosen = facts(row).filter(([name]) => !names || names.includes(name));
  return el("dl", { class: "facts" }, chosen.map(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
}
