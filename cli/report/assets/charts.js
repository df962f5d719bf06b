// Line charts with several runs laid over each other, and the share of a step that each stage takes.

const BOX = { width: 420, height: 210, left: 46, right: 10, top: 8, bottom: 24 };

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
  return found;
}

function scales(series, bounds) {
  const xs = series.flatMap((line) => line.points.map((point) => point[0]));
  const ys = series.flatMap((line) => line.points.map((point) => point[1]));
  let [low, high] = bounds ?? [Math.min(...ys), Math.max(...ys)];
  if (!bounds && low >= 0 && low < 0.5 * high) low = 0;
  if (!bounds && high > low) high += 0.04 * (high - low);
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const first = Math.min(...xs);
  const width = Math.max(...xs) - first || 1;
  return {
    low, high, first, end: first + width,
    x: (step) => BOX.left + ((step - first) / width) * (BOX.width - BOX.left - BOX.right),
    y: (value) => BOX.height - BOX.bottom - ((value - low) / (high - low)) * (BOX.height - BOX.top - BOX.bottom),
  };
}

function axes(scale, format) {
  const lines = ticks(scale.low, scale.high, 5).map((value) => [
    svg("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: scale.y(value), y2: scale.y(value) }),
    svg("text", { class: "tick", x: BOX.left - 5, y: scale.y(value) + 3.5, "text-anchor": "end" }, format(value)),
  ]);
  const steps = ticks(scale.first, scale.end, 6).filter(Number.isInteger).map((step) =>
    svg("text", { class: "tick", x: scale.x(step), y: BOX.height - 8, "text-anchor": "middle" }, String(step)));
  return [...lines, ...steps];
}

const short = (value) => (Math.abs(value) >= 1e4 ? value.toExponential(0) : String(Number(value.toPrecision(3))));
const path = (points, scale) => points.map(([step, value], i) => (i ? "L" : "M") + scale.x(step).toFixed(1) + " " + scale.y(value).toFixed(1)).join("");

// series: [{run, label, points}]. Arrow keys and the pointer read single values.
function lineChart(title, series, bounds) {
  const lines = series.filter((line) => line.points.length).map((line) => ({ ...line, points: line.points.filter((point) => point[1] !== null) }));
  if (!lines.some((line) => line.points.length)) return null;
  const scale = scales(lines, bounds);
  const cursor = svg("line", { class: "cursor", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
  const drawn = lines.map((line) => line.points.length > 1
    ? svg("path", { class: "line run" + (line.run % 8), d: path(line.points, scale) })
    : svg("circle", { class: "dot run" + (line.run % 8), cx: scale.x(line.points[0][0]), cy: scale.y(line.points[0][1]), r: 3 }));
  const picture = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": describe(title, lines) }, axes(scale, short), drawn, cursor);
  const readout = el("p", { class: "readout" }, atEnd(lines));
  const steps = unique(lines.flatMap((line) => line.points.map((point) => point[0]))).sort((a, b) => a - b);
  const figure = el("figure", { class: "chart", tabindex: 0 }, el("figcaption", {}, title), picture, readout);
  reading(figure, picture, steps, scale, (step) => {
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const side of ["x1", "x2"]) cursor.setAttribute(side, scale.x(step));
    readout.replaceChildren(...(step === null ? atEnd(lines) : at(lines, step)));
  });
  return figure;
}

function reading(figure, picture, steps, scale, show) {
  let place = null;
  const nearest = (step) => steps.reduce((best, _, i) => (Math.abs(steps[i] - step) < Math.abs(steps[best] - step) ? i : best), 0);
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width) * BOX.width;
    place = nearest(scale.first + ((share - BOX.left) / (BOX.width - BOX.left - BOX.right)) * (scale.end - scale.first));
    show(steps[place]);
  });
  picture.addEventListener("pointerleave", () => show((place = null)));
  figure.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    place = Math.min(Math.max((place ?? steps.length - 1) + (event.key === "ArrowRight" ? 1 : -1), 0), steps.length - 1);
    show(steps[place]);
    event.preventDefault();
  });
  figure.addEventListener("blur", () => show((place = null)));
}

function values(lines, pick, head) {
  return [el("span", { class: "quiet" }, head), ...lines.map((line) => {
    const point = pick(line.points);
    return el("span", { class: "value run" + (line.run % 8) }, (line.label ? line.label + " " : "") + (point ? number(point[1]) : "–"));
  })];
}

const at = (lines, step) => values(lines, (points) => points.find((point) => point[0] === step), "step " + step);
const atEnd = (lines) => values(lines, last, "last");
const describe = (title, lines) => title + ": " + lines.map((line) => `${line.label || "run"} from ${number(line.points[0]?.[1])} to ${number(last(line.points)?.[1])}`).join("; ");

// Shares of a step: areas that add up to one. stages: [[name, points]]
function shareChart(title, stages) {
  const steps = unique(stages.flatMap(([, points]) => points.map((point) => point[0]))).sort((a, b) => a - b);
  if (steps.length === 0) return null;
  const tables = stages.map(([name, points]) => [name, new Map(points)]);
  const rows = steps.map((step) => tables.map(([, table]) => table.get(step) ?? 0));
  const totals = rows.map((row) => sum(row) || 1);
  const whole = sum(totals);
  const scale = scales([{ points: steps.map((step) => [step, 0]) }], [0, 1]);
  const areas = stages.map((_, stage) => {
    const edge = (upto) => steps.map((step, i) => [step, sum(rows[i].slice(0, upto)) / totals[i]]);
    const shape = steps.length > 1
      ? path(edge(stage + 1), scale) + path(edge(stage).reverse(), scale).replace("M", "L") + "Z"
      : bar(edge(stage)[0][1], edge(stage + 1)[0][1], scale);
    return svg("path", { class: "area stage" + (stage % 8), d: shape });
  });
  const shares = stages.map(([name], stage) => [name, sum(rows.map((row) => row[stage])) / whole]);
  const legend = el("ul", { class: "legend" }, shares.map(([name, share], stage) =>
    el("li", {}, el("i", { class: "swatch stage" + (stage % 8) }), `${name} ${percent(share)}`)));
  const label = title + ": " + shares.map(([name, share]) => `${name} ${percent(share)}`).join(", ");
  const picture = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img", "aria-label": label }, areas, axes(scale, (value) => Math.round(100 * value) + " %"));
  return el("figure", { class: "chart" }, el("figcaption", {}, title), picture, legend, el("p", { class: "readout" }, `${number(whole / steps.length)} s a step on average`));
}

const bar = (from, to, scale) => `M${BOX.left} ${scale.y(from)}H${BOX.width - BOX.right}V${scale.y(to)}H${BOX.left}Z`;
