"use strict";
// What the pages of `hfgen demo` and `hfgen studio` share. Images are Float32Arrays in [−1, 1], (C, H, W) each; several
// of them lie one after the other.

// An element with properties (`on…` are listeners, `aria-…` and `data-…` attributes) and children.
function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat(Infinity));
  return element;
}

const megabytes = bytes => `${(bytes / 1e6).toFixed(1)} MB`;
const seconds = since => {
  const milliseconds = performance.now() - since;
  return milliseconds < 100 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
};
const status = document.getElementById("status");
const say = text => (status.textContent = text);

const sizeOf = model => model.image_shape.reduce((product, side) => product * side);

function joined(arrays) {
  const all = new Float32Array(arrays.reduce((sum, array) => sum + array.length, 0));
  let start = 0;
  for (const array of arrays) {
    all.set(array, start);
    start += array.length;
  }
  return all;
}

// Show images in a canvas, in rows of so many.
function paint(canvas, images, [channels, height, width], columns = 1) {
  const plane = height * width, count = images.length / (channels * plane), rows = Math.ceil(count / columns);
  const gap = count > 1 ? 1 : 0, across = columns * (width + gap) - gap, down = rows * (height + gap) - gap;
  if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
  const context = canvas.getContext("2d"), pixels = context.createImageData(across, down);
  for (let image = 0; image < count; image++)
    for (let i = 0; i < plane; i++) {
      const x = (image % columns) * (width + gap) + (i % width), y = Math.floor(image / columns) * (height + gap) + Math.floor(i / width);
      for (let c = 0; c < 3; c++)
        pixels.data[4 * (y * across + x) + c] = Math.round(Math.max(0, Math.min(1, images[(image * channels + (c % channels)) * plane + i] / 2 + 0.5)) * 255);
      pixels.data[4 * (y * across + x) + 3] = 255;
    }
  context.putImageData(pixels, 0, 0);
  canvas.style.setProperty("--across", across);
}

const picture = (id, label) => h("canvas", { id, role: "img", "aria-label": label, className: "picture", width: 1, height: 1 });
const figure = (canvas, caption) => h("figure", {}, canvas, h("figcaption", {}, caption));

// A slider with its value beside it.
function slider(id, label, { min, max, step, value, text = String, oninput = () => {} }) {
  const shown = h("output", { htmlFor: id }, text(value));
  const input = h("input", { type: "range", id, min, max, step, oninput: () => { shown.textContent = text(input.valueAsNumber); oninput(); } });
  input.value = value;
  return { input, element: h("label", { htmlFor: id }, `${label} `, input, " ", shown), show: () => (shown.textContent = text(input.valueAsNumber)) };
}

// Buttons of which one is pressed.
function choice(legend, options, pressed, onchoose) {
  const buttons = options.map(([value, text], index) =>
    h("button", { type: "button", "aria-pressed": String(value === pressed), onclick: () => choose(index) }, text),
  );
  const found = { value: pressed };
  function choose(index) {
    found.value = options[index][0];
    buttons.forEach((button, other) => button.setAttribute("aria-pressed", String(other === index)));
    onchoose();
  }
  found.element = h("fieldset", { className: "choice" }, h("legend", {}, legend), ...buttons);
  return found;
}

// A number with a button for the next one.
function seedField(id, onchange, label = "seed") {
  const input = h("input", { type: "number", id, min: 0, max: 2 ** 31 - 1, step: 1, value: 0, onchange });
  const next = h("button", { type: "button", onclick: () => { input.value = Number(input.value) + 1; onchange(); } }, `next ${label}`);
  // What cannot be a seed becomes the nearest that can, also in the field.
  const corrected = () => (input.value = Math.max(0, Math.min(2 ** 31 - 1, Math.floor(Number(input.value)) || 0)), Number(input.value));
  return { get value() { return corrected(); }, set value(seed) { input.value = seed; }, element: h("span", { className: "seed" }, h("label", { htmlFor: id }, `${label} `, input), next) };
}

const columnsOf = count => (count === 10 ? 5 : Math.ceil(Math.sqrt(count)));

// A list of the classes of a model, or null for one without classes.
const classList = (model, id, onchange, first = []) =>
  model.classes ? h("select", { id, onchange }, first, model.classes.map((name, index) => h("option", { value: index }, name))) : null;

const labelled = (text, select) => (select ? h("label", { htmlFor: select.id }, `${text} `, select) : []);

// Jobs of a queue run one after the other. A job that is wanted again while it runs or waits, or whose panel is closed,
// is given up: the function that it gets throws `Replaced` then, and is called between steps.
class Replaced extends Error {}
class Said extends Error {} // with a message for the visitor: no mistake of the page
const pageQueue = { last: Promise.resolve() };
let waitingJobs = 0, shown = 0; // `shown` counts the changes of the page

// Begin a new page, whose jobs do not wait for those of the former one.
function turnPage() {
  shown++;
  pageQueue.last = Promise.resolve();
}

document.body.dataset.jobs = waitingJobs; // for tests, which wait until it is 0

// Say what went wrong, until something works again.
let isComplaining = false;
function explain(error) {
  if (error instanceof Replaced) return;
  isComplaining = true;
  if (!(error instanceof Said)) console.error(error);
  say(`This did not work: ${error.message}`);
}

function works() {
  if (isComplaining) say("");
  isComplaining = false;
}

function newest(job, queue = pageQueue) {
  const page = shown;
  let wanted = 0;
  const begin = () => {
    const number = ++wanted;
    const goOn = () => { if (number !== wanted || page !== shown) throw new Replaced(); };
    document.body.dataset.jobs = ++waitingJobs;
    queue.last = queue.last.then(async () => {
      try {
        goOn();
        await job(goOn);
        works();
      } catch (error) {
        explain(error);
      }
      document.body.dataset.jobs = --waitingJobs;
    });
  };
  begin.cancel = () => wanted++;
  return begin;
}

function state() {
  return new URLSearchParams(location.hash.slice(1));
}

function remember(values) {
  const now = state();
  for (const [name, value] of Object.entries(values)) now.set(name, value);
  history.replaceState(null, "", `#${now}`);
}

// Interpolate spherically in direction and linearly in length, as the pipelines' `interpolate`.
function spherical(a, b, share) {
  const length = vector => Math.hypot(...vector);
  const [m, n] = [length(a), length(b)], size = m + (n - m) * share;
  const angle = Math.acos(Math.max(-1, Math.min(1, a.reduce((sum, value, i) => sum + (value / m) * (b[i] / n), 0))));
  if (Math.sin(angle) < 1e-4) return a.map((value, i) => value + (b[i] - value) * share);
  return a.map((value, i) => (size * (Math.sin((1 - share) * angle) * (value / m) + Math.sin(share * angle) * (b[i] / n))) / Math.sin(angle));
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// A canvas to draw on, with the mouse, a finger or the keyboard; `mask` is 1 where a region is marked.
class Sketch {
  constructor(shape, onchange, { canMark = false, read = readPicture } = {}) {
    const [channels, height, width] = shape;
    Object.assign(this, { shape, onchange, read, mask: new Uint8Array(height * width), image: new Float32Array(channels * height * width).fill(-1), cursor: null });
    this.canvas = h("canvas", { id: "sketch", className: "picture sketch", tabIndex: 0, role: "application", width, height, "aria-label": "your picture; draw with the mouse; or move with the arrow keys, with Shift to draw, and draw a point with the space bar" });
    const tools = [["draw", "draw"], ["erase", "erase"], ...(canMark ? [["mark", "mark what to fill in"]] : [])];
    this.tool = choice("tool", tools, "draw", () => {});
    this.colour = channels === 3 ? h("input", { type: "color", id: "colour", value: "#ffffff" }) : null;
    const file = h("input", { type: "file", id: "open", accept: "image/*", onchange: () => this.open(file.files[0]) });
    const clear = h("button", { type: "button", id: "clear", onclick: () => this.set(new Float32Array(this.image.length).fill(-1)) }, "clear");
    this.controls = [this.tool.element, this.colour ? h("label", { htmlFor: "colour" }, "colour ", this.colour) : [], clear, h("label", { htmlFor: "open" }, "open a picture ", file)];
    const at = event => {
      const box = this.canvas.getBoundingClientRect();
      return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    };
    let last = null;
    this.canvas.addEventListener("pointerdown", event => {
      if (!event.isPrimary || event.button) return;
      this.canvas.setPointerCapture(event.pointerId);
      last = at(event);
      this.cursor = null;
      this.stroke(last, last);
    });
    this.canvas.addEventListener("pointermove", event => {
      if (!last || !event.isPrimary) return;
      const now = at(event);
      this.stroke(last, now);
      last = now;
    });
    for (const name of ["pointerup", "pointercancel"])
      this.canvas.addEventListener(name, () => {
        if (last) this.onchange();
        last = null;
      });
    this.canvas.addEventListener("keydown", event => {
      const step = { ...ARROWS, " ": [0, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      const before = this.cursor ?? [width / 2, height / 2];
      this.cursor = before.map((value, i) => Math.max(0.5, Math.min([width, height][i] - 0.5, value + step[i])));
      if (event.key === " " || event.shiftKey) {
        this.stroke(before, this.cursor);
        this.onchange();
      } else this.show();
    });
    this.show();
  }

  // Draw, erase or mark along a line.
  stroke([x0, y0], [x1, y1]) {
    const [channels, height, width] = this.shape, radius = Math.max(0.7, (this.tool.value === "draw" ? 0.045 : 0.1) * width);
    const ink = this.tool.value === "erase" ? [-1, -1, -1] : this.colour ? [1, 3, 5].map(i => (parseInt(this.colour.value.slice(i, i + 2), 16) / 255) * 2 - 1) : [1];
    const far = Math.hypot(x1 - x0, y1 - y0) || 1;
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const share = Math.max(0, Math.min(1, ((x + 0.5 - x0) * (x1 - x0) + (y + 0.5 - y0) * (y1 - y0)) / far ** 2));
        const distance = Math.hypot(x + 0.5 - x0 - share * (x1 - x0), y + 0.5 - y0 - share * (y1 - y0));
        const amount = Math.max(0, Math.min(1, radius + 0.5 - distance));
        if (this.tool.value === "mark") {
          if (amount > 0.5) this.mask[y * width + x] = 1;
        } else
          for (let c = 0; c < channels; c++) {
            const i = (c * height + y) * width + x;
            const covered = this.image[i] + (ink[c] - this.image[i]) * amount;
            this.image[i] = channels === 1 && this.tool.value === "draw" ? Math.max(this.image[i], covered) : covered;
          }
      }
    this.show();
  }

  set(image) {
    this.image = image.map(value => Math.max(-1, Math.min(1, value)));
    this.mask.fill(0);
    this.show();
    this.onchange();
  }

  async open(file) {
    if (!file) return; // the dialogue was closed
    try {
      this.set(await this.read(file, this.shape));
    } catch (error) {
      say(error.message);
    }
  }

  show() {
    const [, , width] = this.shape;
    paint(this.canvas, this.image, this.shape);
    const context = this.canvas.getContext("2d");
    context.fillStyle = "rgba(224, 123, 40, .75)";
    this.mask.forEach((marked, i) => marked && context.fillRect(i % width, Math.floor(i / width), 1, 1));
    if (this.cursor) {
      context.strokeStyle = "#e07b28";
      context.lineWidth = 0.5;
      context.strokeRect(Math.floor(this.cursor[0]) + 0.25, Math.floor(this.cursor[1]) + 0.25, 0.5, 0.5);
    }
  }
}

// The pixels of a picture file, cropped to a shape and resized.
async function readPicture(file, [channels, height, width]) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Said(`${file.name} is not a picture that this browser can read`);
  }
  const canvas = h("canvas", { width, height }), context = canvas.getContext("2d");
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - bitmap.width * scale) / 2, (height - bitmap.height * scale) / 2, bitmap.width * scale, bitmap.height * scale);
  const { data } = context.getImageData(0, 0, width, height);
  const image = new Float32Array(channels * height * width);
  for (let i = 0; i < width * height; i++) {
    const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
    const values = channels === 1 ? [0.299 * r + 0.587 * g + 0.114 * b] : [r, g, b];
    values.forEach((value, c) => (image[c * width * height + i] = value / 127.5 - 1));
  }
  return image;
}
