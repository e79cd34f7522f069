"use strict";
// The tab Latents: the space from which a VAE or GAN makes images.

const REACH = 3, CELLS = 9, TRAVERSED = 8;

function latentsTab(root) {
  return withModel(root, ["decode"], "There is no VAE or GAN, and other models have no latents.", async facts => {
    const space = { facts, latents: await startLatents(facts), onchange: [], onclass: [] };
    return [planePanel(space), traversalPanel(space), seedsPanel(space), ...(facts.encodes ? [unitsPanel(space)] : [])];
  });
}

// Where to start: at the latents of the address, which the tab Your picture leaves there, or at those of an image.
async function startLatents(facts) {
  const found = kept("latents", "").split(" ").filter(Boolean).map(Number);
  if (found.length === facts.dimensions.length && found.every(Number.isFinite)) return found;
  return (await ask("latents", { model: facts.name })).latents[0];
}

const decoded = (space, latents, goOn) => resultOf("decode", { model: space.facts.name, latents, ...(space.label ? { class_labels: [space.facts.classes[space.label.value]] } : {}) }, goOn);

const clipped = value => Math.max(-REACH, Math.min(REACH, value));

// The plane of two latents: decoded under the mouse, with the encodings of test images, and a path between two points.
function planePanel(space) {
  const { facts } = space, size = facts.dimensions.length;
  const map = h("canvas", { id: "plane", className: "plane", tabIndex: 0, role: "application", "aria-label": "the plane of two latents; move with the mouse or the arrow keys", width: 1, height: 1 });
  const marker = h("span", { className: "marker" }), image = picture("decoded", "the image at this place"), place = h("output", { id: "place" }), path = picture("path", "images between the two points"), same = sameAs();
  const overlay = document.createElementNS("http://www.w3.org/2000/svg", "svg"), legend = h("div", { className: "legend" });
  overlay.setAttribute("viewBox", "0 0 100 100");
  space.label = classList(facts.classes.length ? facts : {}, "class", () => { drawMap(); space.onclass.forEach(changed => changed()); });
  if (space.label) choose(space.label, "class", 0);
  const axis = (id, index) => h("select", { id, onchange: () => drawMap() }, facts.dimensions.map((dimension, rank) => h("option", { value: dimension, selected: rank === index }, `latent ${dimension}`)));
  const axes = [choose(axis("across", 0), "across", facts.dimensions[0]), ...(size > 1 ? [choose(axis("down", 1), "down", facts.dimensions[1])] : [])];
  const points = [[-1.5, -1.5], [1.5, 1.5]]; // the ends of the path
  let at = axes.map(select => space.latents[Number(select.value)]), encodings = null;
  const latentsAt = position => {
    const latents = [...space.latents];
    axes.forEach((select, index) => (latents[Number(select.value)] = position[index]));
    return latents;
  };
  const share = (value = 0) => 50 + (value / REACH) * 50 * ((CELLS - 1) / CELLS);
  const drawMap = newest(async goOn => {
    const places = Array.from({ length: CELLS ** 2 }, (_, i) => [i % CELLS, Math.floor(i / CELLS)].map(cell => ((2 * cell) / (CELLS - 1) - 1) * REACH));
    const { images } = await decoded(space, places.map(latentsAt), goOn);
    showImages(map, images, CELLS);
    drawOverlay();
    decodeHere();
    drawPath();
  });
  const decodeHere = newest(async goOn => {
    goOn();
    const since = performance.now();
    const { images } = await decoded(space, [latentsAt(at)], goOn);
    showImages(image, images);
    place.textContent = `${axes.map((select, index) => `latent ${select.value}: ${at[index].toFixed(2)}`).join(", ")} (${milliseconds(since)} ms)`;
    space.latents = latentsAt(at);
    const numbers = space.latents.map(value => +value.toFixed(3)).join(", "), classes = space.label ? `, class_labels=[${JSON.stringify(facts.classes[space.label.value])}]` : "";
    same.say("", `hfgen.load(${JSON.stringify(facts.name)})(latents=torch.tensor([[${numbers}]])${classes}).images[0]`);
    remember({ latents: space.latents.map(value => +value.toFixed(3)).join(" "), ...Object.fromEntries(axes.map(select => [select.id, select.value])), ...(space.label ? { class: space.label.value } : {}) });
    space.onchange.forEach(changed => changed());
  });
  const drawPath = newest(async goOn => {
    const [a, b] = points.map(point => latentsAt(axes.map((_, index) => point[index])));
    const { images } = await decoded(space, Array.from({ length: 10 }, (_, i) => a.map((value, k) => value + ((b[k] - value) * i) / 9)), goOn);
    showImages(path, images, 10);
  });
  const svg = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  function drawOverlay() {
    overlay.replaceChildren();
    legend.replaceChildren();
    if (encodings) {
      encodings.means.forEach((mean, row) => {
        const [x, y] = [mean[Number(axes[0].value)], axes[1] ? mean[Number(axes[1].value)] : 0];
        if (Math.abs(x) <= REACH && Math.abs(y) <= REACH) overlay.append(svg("circle", { cx: share(x), cy: share(y), r: 0.6, fill: COLORS[(encodings.labels?.[row] ?? 0) % COLORS.length] }));
      });
      if (encodings.labels) drawLegend(legend, encodings.label_names.map((name, index) => ({ name, color: COLORS[index % COLORS.length] })));
    }
    const ends = points.map(point => ({ x: share(point[0]), y: share(axes[1] ? point[1] : 0) }));
    overlay.append(svg("line", { x1: ends[0].x, y1: ends[0].y, x2: ends[1].x, y2: ends[1].y, stroke: "#e07b28", "stroke-width": 0.5, "stroke-dasharray": "1.5 1" }));
    ends.forEach((end, index) => {
      const handle = svg("circle", { class: "handle", id: `end-${index}`, tabindex: 0, role: "slider", "aria-label": `${index ? "last" : "first"} point of the path; move with the arrow keys`, "aria-valuenow": points[index].map(value => value.toFixed(2)).join(", "), cx: end.x, cy: end.y, r: 1.8, fill: "#fff", stroke: "#e07b28", "stroke-width": 0.8 });
      handle.addEventListener("pointerdown", event => { event.stopPropagation(); handle.setPointerCapture(event.pointerId); });
      handle.addEventListener("pointermove", event => { if (handle.hasPointerCapture(event.pointerId)) { points[index] = positionOf(event); move(handle, points[index]); } });
      handle.addEventListener("pointerup", () => { drawOverlay(); drawPath(); });
      handle.addEventListener("keydown", event => {
        const step = ARROWS[event.key];
        if (!step) return;
        event.preventDefault();
        points[index] = points[index].map((value, k) => clipped(value + step[k] * 0.25));
        drawOverlay();
        overlay.querySelector(`#end-${index}`).focus();
        drawPath();
      });
      overlay.append(handle);
    });
  }
  const move = (handle, point) => { handle.setAttribute("cx", share(point[0])); handle.setAttribute("cy", share(point[1])); drawPath(); };
  const positionOf = event => {
    const box = map.getBoundingClientRect();
    const at = (value, start, length) => clipped(((2 * (value - start)) / length - 1) * REACH * (CELLS / (CELLS - 1)));
    return [at(event.clientX, box.left, box.width), at(event.clientY, box.top, box.height)];
  };
  function moveTo(position) {
    at = position;
    Object.assign(marker.style, { left: `${share(clipped(at[0]))}%`, top: `${share(clipped(at[1] ?? 0))}%` });
    decodeHere();
  }
  for (const name of ["pointermove", "pointerdown"]) map.addEventListener(name, event => moveTo(positionOf(event).slice(0, axes.length)));
  map.addEventListener("keydown", event => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    moveTo(at.map((value, index) => clipped(value + step[index] * (event.shiftKey ? 0.5 : 0.1))));
  });
  space.refresh = () => { at = axes.map(select => space.latents[Number(select.value)]); drawMap(); moveTo(at); };
  const encode = h("button", { type: "button", id: "encodings", onclick: () => counted(showEncodings()) }, "show where test images are");
  async function showEncodings() {
    if (encodings) {
      encodings = null;
      encode.textContent = "show where test images are";
      return drawOverlay();
    }
    encode.textContent = "encoding test images…";
    try {
      encodings = await ask(withQuery("encodings", { model: facts.name }));
      space.encodings = encodings;
      space.onencodings?.();
      drawOverlay();
      encode.textContent = `${encodings.means.length.toLocaleString("en")} test images, coloured by class: hide`;
    } catch (error) {
      encode.textContent = "show where test images are";
      throw error;
    }
  }
  drawMap();
  moveTo(at);
  return h("section", { "aria-label": "the plane" }, h("h2", {}, "The plane of two latents"),
    h("p", {}, `Each image is made of ${size} numbers, its `, ...term("latents"), ". Move over the map to change two of them, by default those that change the image most. Drag the two points to see the images between them."),
    h("div", { className: "controls" }, labelled("across", axes[0]), labelled("down", axes[1]), labelled("class", space.label), facts.encodes ? encode : [], h("button", { type: "button", id: "centre", onclick: () => { space.latents = space.latents.map(() => 0); space.refresh(); } }, "to the centre")),
    h("div", { className: "pictures" }, h("figure", {}, h("div", { className: "map" }, map, overlay, marker), legend, h("figcaption", {}, `from −${REACH} to ${REACH} in both directions`)), figure(image, place)),
    figure(path, "from the first point to the last"), same.element);
}

// A slider for each of the latents that change the image most, with the images along it.
function traversalPanel(space) {
  const { facts } = space, rows = facts.dimensions.slice(0, TRAVERSED).map(dimension => {
    const strip = picture(`along-${dimension}`, `images along latent ${dimension}`);
    const input = slider(`latent-${dimension}`, `latent ${dimension}`, { min: -REACH, max: REACH, step: 0.1, value: clipped(space.latents[dimension]), text: value => value.toFixed(1), oninput: () => {
      space.latents[dimension] = input.input.valueAsNumber;
      space.refresh();
    } });
    return { dimension, strip, input, element: h("tr", {}, h("td", {}, input.element), h("td", {}, strip)) };
  });
  const start = newest(async goOn => {
    for (const { dimension, strip, input } of rows) {
      if (document.activeElement !== input.input) { input.input.value = space.latents[dimension]; input.show(); }
      const along = Array.from({ length: 9 }, (_, i) => space.latents.map((value, index) => (index === dimension ? (i / 8) * 2 * REACH - REACH : value)));
      const { images } = await decoded(space, along, goOn);
      showImages(strip, images, 9);
    }
  }, { last: Promise.resolve() });
  let waits = null;
  space.onchange.push(() => { clearTimeout(waits); waits = setTimeout(start, 150); }); // not at each movement of the mouse
  start();
  return h("section", { "aria-label": "traversals" }, h("h2", {}, "One latent at a time"), h("div", { className: "scroll" }, h("table", { className: "cells strips" }, rows.map(row => row.element))));
}

// Interpolate between the latents of two seeds; of a GAN at several thresholds of truncation.
function seedsPanel(space) {
  const { facts } = space, row = picture("row", "images between two seeds"), first = seedField("first-seed", () => start(), "first seed"), last = seedField("last-seed", () => start(), "last seed");
  first.value = keptNumber("first", 0);
  last.value = keptNumber("last", 1);
  const none = 4, truncation = facts.family === "gan" ? slider("truncation", "truncation", { min: 0.2, max: none, step: 0.1, value: keptNumber("truncation", none), text: value => (value === none ? "none" : value.toFixed(1)), oninput: () => start() }) : null;
  const start = newest(async goOn => {
    const options = { model: facts.name, num_images: 1, ...(truncation ? { truncation: truncation.input.valueAsNumber === none ? 1000 : truncation.input.valueAsNumber } : {}), ...(space.label ? { class_labels: [space.facts.classes[space.label.value]] } : {}) };
    const [a, b] = await Promise.all([first, last].map(async field => (await ask("latents", { ...options, seed: field.value })).latents[0]));
    goOn();
    const { images } = await decoded(space, Array.from({ length: 10 }, (_, i) => [...spherical(Float32Array.from(a), Float32Array.from(b), i / 9)]), goOn);
    showImages(row, images, 10);
    remember({ first: first.value, last: last.value, ...(truncation ? { truncation: truncation.input.value } : {}) });
  });
  space.onclass.push(start);
  start();
  return h("section", { "aria-label": "between two seeds" }, h("h2", {}, "Between two seeds"),
    h("div", { className: "controls" }, first.element, last.element, truncation ? h("span", {}, truncation.element, term("", "truncation")) : []), figure(row, "from the first seed to the last"));
}

// Which latents the model uses.
function unitsPanel(space) {
  const place = h("div", { id: "units" }, h("p", { className: "dim" }, "“Show where test images are” fills in this list."));
  space.onencodings = () => {
    const { kl, active } = space.encodings, most = Math.max(...kl), order = kl.map((_, index) => index).sort((a, b) => kl[b] - kl[a]);
    place.replaceChildren(h("p", {}, `${active.filter(Boolean).length} of ${kl.length} are active.`), bars(order.map(index => [`latent ${index}`, kl[index] / most, `${kl[index].toFixed(2)} nats`, !active[index]])));
  };
  return h("section", { "aria-label": "active units" }, h("h2", {}, ...term("Active units", "active")), place);
}
