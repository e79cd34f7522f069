const COLORS = ["#3b82d6", "#e07b28", "#3fa34d", "#d64550", "#9467bd", "#a0785a", "#d46fb3", "#8a9199", "#a8a531", "#21a8b5"];
const short = value => String(+value.toPrecision(3));

// Round numbers within a range, for the ticks of an axis.
function ticks(low, high, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of high / low > 300 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
    return found.filter(tick => tick >= low && tick <= high);
  }
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= rough);
  const found = [];
  for (let index = Math.ceil(low / step); index * step <= high; index++) found.push(index * step);
  return found;
}

// Draw lines, {name, x, y, color} each, into an element. A null in y is a gap. The axis fits the values after the first
// 20th unless they are all wanted, and is logarithmic for a large range unless it has to be linear.
function drawChart(place, lines, xTitle, { height = 180, isLinear = false, isWhole = false } = {}) {
  const width = Math.max(place.clientWidth, 200), left = 48, bottom = 34, top = 6;
  const draw = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return parent.appendChild(element);
  };
  place.replaceChildren();
  const points = lines.flatMap(line => line.x.map((x, index) => ({ x, y: line.y[index], line })).filter(point => point.y !== null));
  if (!points.length) return;
  const range = values => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
  let [firstX, lastX] = range(points.map(point => point.x));
  const early = isWhole ? firstX : firstX + (lastX - firstX) / 20;
  let [low, high] = range(points.filter(point => point.x >= early).map(point => point.y));
  const log = !isLinear && low > 0 && high / low > 10;
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  if (firstX === lastX) firstX = 0;
  const scale = value => (log ? Math.log(value) : value);
  const atX = x => left + (width - left - 8) * (x - firstX) / (lastX - firstX || 1);
  const atY = y => top + (height - top - bottom) * (scale(high) - scale(y)) / (scale(high) - scale(low));
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img" }, place);
  for (const tick of ticks(low, high, log)) {
    draw("line", { class: "grid", x1: left, x2: width - 8, y1: atY(tick), y2: atY(tick) }, svg);
    draw("text", { x: left - 6, y: atY(tick) + 4, "text-anchor": "end" }, svg).textContent = short(tick);
  }
  for (const tick of ticks(firstX, lastX, false))
    draw("text", { x: atX(tick), y: height - bottom + 15, "text-anchor": "middle" }, svg).textContent = (+tick.toPrecision(6)).toLocaleString("en");
  draw("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, svg).textContent = xTitle;
  const inside = { x: left, y: top, width: width - left - 8, height: height - top - bottom };
  const plot = draw("svg", { ...inside, viewBox: Object.values(inside).join(" ") }, svg);
  for (const line of lines) {
    let path = "", pen = "M";
    line.x.forEach((x, index) => {
      if (line.y[index] === null) pen = "M";
      else { path += `${pen}${atX(x).toFixed(1)} ${atY(line.y[index]).toFixed(1)}${pen === "M" ? "h0" : ""}`; pen = "L"; }
    });
    draw("path", { d: path, stroke: line.color }, plot);
  }
  const readout = place.appendChild(document.createElement("div")), spot = draw("circle", { r: 0 }, svg);
  readout.className = "readout";
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const far = point => Math.hypot(atX(point.x) - (event.clientX - box.left) * width / box.width, atY(point.y) - (event.clientY - box.top) * height / box.height);
    const near = points.reduce((best, point) => (far(point) < far(best) ? point : best));
    for (const [key, value] of Object.entries({ r: 3.5, cx: atX(near.x), cy: atY(near.y), fill: near.line.color })) spot.setAttribute(key, value);
    readout.textContent = `${near.line.name ? near.line.name + ": " : ""}${short(near.y)} at ${(+near.x.toPrecision(4)).toLocaleString("en")} ${xTitle}`;
  });
}

function drawLegend(place, lines) {
  place.replaceChildren(...lines.map(line => {
    const entry = document.createElement("span"), mark = entry.appendChild(document.createElement("i"));
    mark.style.background = line.color;
    entry.append(line.name);
    return entry;
  }));
}

const readData = id => JSON.parse(document.getElementById(id).textContent);
const axis = () => document.querySelector("input[name=axis]:checked")?.value ?? "steps";
const axisTitle = () => (axis() === "steps" ? "optimizer steps" : "minutes");

// Draw now, and again when the axis or the width of the window changes.
function keepDrawn(draw) {
  draw();
  window.addEventListener("resize", draw);
  for (const choice of document.querySelectorAll("input[name=axis]")) choice.addEventListener("change", draw);
}
