"use strict";
// The page of `hfgen demo`: models that draw in the browser, with onnxruntime-web. Images are Float32Arrays in [−1, 1],
// (C, H, W) each; several of them lie one after the other.

// ---------------------------------------------------------------------------------------------------------------------
// Random numbers: those of torch on a CPU, so that a seed means the same image here and in `hfgen sample`.

// The Mersenne Twister (Matsumoto and Nishimura 1998), and what torch makes of its bits.
class Random {
  constructor(seed) {
    const state = (this.state = new Uint32Array(624));
    state[0] = Number(seed & 0xffffffffn);
    for (let i = 1; i < 624; i++) state[i] = Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i;
    this.next = 624;
    this.kept = null; // the second of a pair of normal numbers
  }

  bits() {
    const state = this.state;
    if (this.next === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.next = 0;
    }
    let y = state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  // A number in [0, 1) of 24 bits.
  uniform() {
    return (this.bits() & 0xffffff) / 2 ** 24;
  }

  // A number in [0, 1) of 53 bits.
  uniformDouble() {
    const high = this.bits(), low = this.bits();
    return ((high & 0x1fffff) * 2 ** 32 + low) / 2 ** 53;
  }

  // `torch.randn(count)`: blocks of 16 by the method of Box and Muller; fewer numbers one by one, in double precision.
  normal(count) {
    const values = new Float32Array(count);
    if (count < 16) return values.map(() => this.oneNormal());
    const pairs = start => {
      for (let i = start; i < start + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - values[i])), angle = 2 * Math.PI * values[i + 8];
        values[i] = radius * Math.cos(angle);
        values[i + 8] = radius * Math.sin(angle);
      }
    };
    for (let i = 0; i < count; i++) values[i] = this.uniform();
    for (let i = 0; i + 15 < count; i += 16) pairs(i);
    if (count % 16) {
      for (let i = count - 16; i < count; i++) values[i] = this.uniform();
      pairs(count - 16);
    }
    return values;
  }

  oneNormal() {
    if (this.kept !== null) {
      const kept = this.kept;
      this.kept = null;
      return kept;
    }
    const first = this.uniformDouble(), second = this.uniformDouble();
    const radius = Math.sqrt(-2 * Math.log1p(-second)), angle = 2 * Math.PI * first;
    this.kept = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }
}

// `hfgen.utils.seeds.derive_seed`: the first 63 bits of a hash of a purpose and numbers.
async function deriveSeed(...parts) {
  const text = `(${parts.map(part => (typeof part === "string" ? `'${part}'` : part)).join(", ")})`;
  const hash = new DataView(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
  return hash.getBigUint64(0) >> 1n;
}

const imageSeed = (seed, number) => deriveSeed("image", seed, number);

// The error function, to 1.2e-7 (Press et al., Numerical Recipes, section 6.2), and its inverse by Newton's method.
function erf(x) {
  const t = 1 / (1 + Math.abs(x) / 2);
  const c = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277];
  const rest = t * Math.exp(-x * x + c.reduceRight((sum, factor) => sum * t + factor));
  return x < 0 ? rest - 1 : 1 - rest;
}

function erfInverse(y) {
  let x = 0;
  for (let i = 0; i < 60; i++) {
    const step = ((erf(x) - y) * Math.sqrt(Math.PI)) / 2 * Math.exp(x * x);
    x -= Math.max(-0.5, Math.min(0.5, step));
    if (Math.abs(step) < 1e-9) break;
  }
  return x;
}

// ---------------------------------------------------------------------------------------------------------------------
// Files and networks. Files are scripts, since a page from disk may load nothing else: base64 of what gzip compressed.

const site = JSON.parse(document.getElementById("site").textContent);
const models = site.models;
const waiting = {};
window.demoFile = (name, text) => waiting[name](text);

async function load(file) {
  const text = await new Promise((resolve, reject) => {
    waiting[file] = resolve;
    const script = document.createElement("script");
    script.src = `files/${file}`;
    script.onerror = () => reject(new Error(`files/${file} could not be loaded`));
    document.head.append(script);
  });
  delete waiting[file];
  const packed = await (await fetch(`data:application/octet-stream;base64,${text}`)).blob();
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// A promise that is forgotten if it fails, so that the next attempt starts anew.
function untilItFails(begin, forget) {
  const promise = begin();
  promise.catch(forget);
  return promise;
}

let runtime = null; // a promise, once the first model is opened
function startRuntime() {
  runtime ??= untilItFails(async () => {
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
    if (site.runtime_files) {
      const [module, binary] = await Promise.all(site.runtime_files.map(load));
      ort.env.wasm.wasmPaths = { mjs: URL.createObjectURL(new Blob([module], { type: "text/javascript" })) };
      ort.env.wasm.wasmBinary = binary;
    }
  }, () => (runtime = null));
  return runtime;
}

// Load the networks of a model, once.
function open(model) {
  model.opening ??= untilItFails(async () => {
    const parts = Object.entries(model.files);
    const [, ...loaded] = await Promise.all([startRuntime(), ...parts.map(([, part]) => load(part.file))]);
    const sessions = {};
    for (const [index, bytes] of loaded.entries())
      sessions[parts[index][0]] = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    model.sessions = sessions;
  }, () => (model.opening = null));
  return model.opening;
}

const pause = () => new Promise(resolve => setTimeout(resolve)); // lets the page show what is new

// Run a network; inputs are Float32Arrays, class labels an array of numbers. Returns a Float32Array for each output.
async function run(model, name, count, inputs) {
  const tensors = {};
  for (const [key, shape] of Object.entries(model.files[name].inputs)) {
    const value = inputs[key];
    tensors[key] = key === "class_labels" ? new ort.Tensor("int64", BigInt64Array.from(value, BigInt), [count]) : new ort.Tensor("float32", value, [key === "timestep" ? 1 : count, ...shape]);
  }
  const outputs = await model.sessions[name].run(tensors);
  await pause();
  return model.files[name].outputs.map(output => outputs[output].data);
}

// ---------------------------------------------------------------------------------------------------------------------
// What models do, as hfgen does it.

function combine(factors, parts) {
  const sum = new Float32Array(parts[0].length);
  factors.forEach((factor, index) => {
    const part = parts[index];
    if (factor) for (let i = 0; i < sum.length; i++) sum[i] += factor * part[i];
  });
  return sum;
}

// The prediction of a diffusion model, guided away from that without a class or from that of a weaker network.
async function predict(model, x, timestep, labels, scale, interval) {
  const count = x.length / sizeOf(model);
  const ask = async (network, class_labels) => (await run(model, network, count, { sample: x, timestep: Float32Array.of(timestep), class_labels }))[0];
  const asked = await ask("unet", labels);
  const level = timestep / model.num_train_timesteps;
  if (!labels || scale === 1 || level < interval[0] || level > interval[1]) return asked;
  const weak = await ("guide" in model.files ? ask("guide", labels) : ask("unet", labels.map(() => model.null_label)));
  return combine([1 - scale, scale], [weak, asked]);
}

// Denoise with the table of a sampler. `onStep` gets the noised images and the estimates of the clean ones.
async function denoise(model, noise, { labels, steps, guidance_scale = model.guidance_scale, guidance_interval = model.guidance_interval, onStep = () => {} }) {
  const table = model.samplers[steps ?? model.num_inference_steps], parts = [noise];
  for (const [index, timestep] of table.timesteps.entries()) {
    const x = combine(table.inputs[index], parts);
    parts.push(await predict(model, x, timestep, labels, guidance_scale, guidance_interval));
    onStep(x, combine(table.estimates[index], parts), index + 1, table.timesteps.length);
  }
  return combine(table.image, parts);
}

// Latents of a VAE or GAN by their seeds.
async function drawLatents(model, seeds, { prior = model.prior, truncation = model.truncation, labels = null } = {}) {
  const generators = seeds.map(seed => new Random(seed));
  const latents = joined(generators.map(generator => generator.normal(model.latent_dim)));
  if (prior === "mixture") {
    const uniform = Float32Array.from(generators, generator => (1 + erf(generator.oneNormal() / Math.SQRT2)) / 2);
    return (await run(model, "mixture", seeds.length, { noise: latents, uniform }))[0];
  }
  if (prior === "flow") return (await run(model, "flow", seeds.length, { noise: latents, class_labels: labels }))[0];
  if (truncation == null) return latents;
  const mass = erf(truncation / Math.SQRT2);
  return latents.map(value => Math.SQRT2 * erfInverse(erf(value / Math.SQRT2) * mass));
}

async function decode(model, latents, labels) {
  const name = "decoder" in model.files ? "decoder" : "generator";
  return (await run(model, name, latents.length / model.latent_dim, { latents, class_labels: labels }))[0];
}

// Draw the images number 0, 1, … of a seed: those of `hfgen sample`, but for the clusters of a model with clusters. By
// default a model with classes draws all of them in turn.
async function draw(model, { seed = 0, labels = null, count = labels?.length ?? 1, ...options } = {}) {
  await open(model);
  if (model.classes) labels ??= Array.from({ length: count }, (_, number) => number % model.classes.length);
  const seeds = await Promise.all(Array.from({ length: count }, (_, number) => imageSeed(seed, number)));
  if (model.use === "decode") return decode(model, await drawLatents(model, seeds, { ...options, labels }), labels);
  const noise = joined(seeds.map(each => new Random(each).normal(sizeOf(model))));
  return denoise(model, noise, { labels: labels ?? (await clusters(model, seeds)), ...options });
}

// Clusters by chance, in proportion to their sizes; null for a model without them.
async function clusters(model, seeds) {
  if (!model.cluster_shares) return null;
  return Promise.all(
    seeds.map(async seed => {
      let rest = new Random(await deriveSeed("cluster", seed)).uniformDouble();
      const found = model.cluster_shares.findIndex(share => (rest -= share) < 0);
      return found < 0 ? model.cluster_shares.length - 1 : found;
    }),
  );
}

// Round as Python does: halves to even numbers.
function rounded(value) {
  const nearest = Math.round(value);
  return nearest - value === 0.5 && nearest % 2 ? nearest - 1 : nearest;
}

// Editing with a diffusion model; see `hfgen.sampling.editing_pipeline`.
const editing = {
  levels(model, first, steps) {
    const all = Array.from({ length: steps }, (_, i) => rounded(first - (first * i) / steps));
    return [...new Set(all)].sort((a, b) => b - a);
  },

  async estimate(model, x, level, labels) {
    const { timesteps, alphas, sigmas } = model.levels, alpha = alphas[level], sigma = sigmas[level];
    const said = await predict(model, x, timesteps[level], labels, 1, [0, 1]);
    const factors = { epsilon: [1 / alpha, -sigma / alpha], sample: [0, 1], v_prediction: [alpha, -sigma], flow_prediction: [1, -sigma] };
    return combine(factors[model.prediction_type], [x, said]);
  },

  async stepDown(model, x, level, below, labels) {
    const { alphas, sigmas } = model.levels;
    const image = (await this.estimate(model, x, level, labels)).map(value => Math.max(-1, Math.min(1, value)));
    const ratio = sigmas[below] / sigmas[level];
    return combine([alphas[below] - ratio * alphas[level], ratio], [image, x]);
  },

  // Add noise to an image, and denoise it (SDEdit).
  async vary(model, image, { seed = 0, strength = 0.5, labels, steps = 20, onStep = () => {} }) {
    await open(model);
    const { alphas, sigmas } = model.levels, first = rounded(strength * (alphas.length - 1));
    const noise = new Random(await deriveSeed("translate", "vary", seed, 0)).normal(image.length);
    let x = combine([alphas[first], sigmas[first]], [image, noise]);
    onStep(x, null);
    const levels = this.levels(model, first, steps);
    for (const [index, below] of levels.slice(1).entries()) {
      x = await this.stepDown(model, x, levels[index], below, labels);
      onStep(null, x);
    }
    return this.estimate(model, x, levels.at(-1), labels);
  },

  // Fill in a region, where the mask is 1 (RePaint).
  async inpaint(model, image, mask, { seed = 0, labels, steps = 50, resamples = 5, onStep = () => {} }) {
    await open(model);
    const { alphas, sigmas } = model.levels, last = alphas.length - 1;
    const generator = new Random(await deriveSeed("translate", "inpaint", seed, 0));
    const noise = () => generator.normal(image.length);
    const within = (inside, outside) => inside.map((value, i) => (mask[i % mask.length] ? value : outside[i]));
    let x = noise();
    const levels = this.levels(model, last, steps);
    for (const [index, below] of levels.slice(1).entries()) {
      const level = levels[index];
      for (let repetition = 0; repetition < resamples; repetition++) {
        if (repetition) {
          const factor = alphas[level] / alphas[below];
          const std = Math.sqrt(Math.max(0, sigmas[level] ** 2 - (factor * sigmas[below]) ** 2));
          x = combine([factor, std], [x, noise()]);
        }
        const filled = await this.stepDown(model, x, level, below, labels);
        x = within(filled, combine([alphas[below], sigmas[below]], [image, noise()]));
        onStep(null, x);
      }
    }
    return within(await this.estimate(model, x, levels.at(-1), labels), image);
  },
};

// Translate an image by a network, after noise of a standard deviation (for pixels in [0, 1]) was added to it.
async function translate(model, image, { network = "generator", noise_std = 0, seed = 0, onNoise = () => {} } = {}) {
  await open(model);
  const noise = new Random(await deriveSeed("translate", "noise", seed, 0)).normal(image.length);
  const sample = combine([1, 2 * noise_std], [image, noise]);
  onNoise(sample);
  return (await run(model, network, 1, { sample, noise_std: Float32Array.of(noise_std) }))[0];
}

// For tests, and for those who want to try more than the page offers.
window.hfgenDemo = { models, open, draw, editing, translate, decode, drawLatents, Random, deriveSeed, imageSeed, erf, erfInverse };

// ---------------------------------------------------------------------------------------------------------------------
// The page.

// The classes of a model as options of `choice`: each of them, and all.
const classOptions = model => [...model.classes.map((name, index) => [index, name]), ["all", "one of each"]];
const labelsOf = (model, chosen) => (chosen === "all" ? model.classes.map((_, index) => index) : [chosen]);

// What to draw: classes or how many, and the seed. `count` is the number of images.
function subject(model, id, onchange, counts = [1, 16]) {
  const options = model.classes ? classOptions(model) : counts.map(count => [count, count === 1 ? "one" : String(count)]);
  const chosen = choice(model.classes ? "class" : "images", options, options[0][0], onchange);
  const seed = seedField(`${id}-seed`, onchange);
  seed.value = state().get("seed") ?? 0;
  return {
    elements: [chosen.element, seed.element],
    seed,
    get labels() { return model.classes ? labelsOf(model, chosen.value) : null; },
    get count() { return this.labels?.length ?? chosen.value; },
    get flags() {
      const classes = model.classes && chosen.value !== "all" ? ` --class_labels ${chosen.value}` : "";
      return `${classes} --num_images ${this.count} --seed ${seed.value}`;
    },
  };
}

// ---------------------------------------------------------------------------------------------------------------------
// Panels.

// Draw with a diffusion model, step by step.
function denoisingPanel(model, memory) {
  const noised = picture("noised", "the noised image"), estimate = picture("image", "the drawn image");
  const time = h("output", { id: "time" }), same = h("code");
  const what = subject(model, "draw", () => start());
  const steps = h("select", { id: "steps", onchange: () => start() }, Object.keys(model.samplers).map(n => h("option", { value: n, selected: Number(n) === model.num_inference_steps }, n)));
  const hasGuidance = model.guidance_scale !== undefined && (model.learnt_no_class || "guide" in model.files);
  const guidance = hasGuidance ? slider("guidance", "guidance", { min: Math.min(1, model.guidance_scale), max: Math.max(8, model.guidance_scale), step: "any", value: model.guidance_scale, text: value => String(+value.toFixed(2)), oninput: () => start() }) : null;
  let frames = [];
  const film = slider("film", "film", { min: 0, max: 0, step: 1, value: 0, text: n => (n ? `after step ${n}` : "noise"), oninput: () => show(film.input.valueAsNumber) });
  function show(index) {
    if (!frames[index]) return; // not drawn yet
    const [x, image] = frames[index];
    paint(noised, x, model.image_shape, columnsOf(x.length / sizeOf(model)));
    paint(estimate, image, model.image_shape, columnsOf(x.length / sizeOf(model)));
  }
  const start = newest(async goOn => {
    await opened(model);
    const since = performance.now(), made = [];
    const options = { seed: what.seed.value, labels: what.labels, count: what.count, steps: Number(steps.value) };
    if (guidance) options.guidance_scale = +guidance.input.valueAsNumber.toFixed(2);
    const images = await draw(model, {
      ...options,
      onStep: (x, image, step, of) => {
        goOn();
        made.push([x, image]);
        frames = made;
        film.input.max = of;
        film.input.value = step - 1;
        film.show();
        show(step - 1);
        time.textContent = `step ${step} of ${of}, ${seconds(since)}`;
      },
    });
    goOn();
    frames = [...made, [images, images]];
    film.input.value = frames.length - 1;
    film.show();
    show(frames.length - 1);
    time.textContent = `${what.count === 1 ? "1 image" : `${what.count} images`} in ${seconds(since)}`;
    memory.image = images.slice(0, sizeOf(model));
    const scale = guidance ? ` --guidance_scale ${options.guidance_scale}` : "";
    same.textContent = `hfgen sample ${model.source}${what.flags} --scheduler ${model.scheduler} --num_inference_steps ${options.steps}${scale}`;
    remember({ seed: what.seed.value });
  });
  start();
  return h("section", { "aria-label": "draw" }, h("h2", {}, "Draw"),
    h("div", { className: "controls" }, what.elements, labelled("steps", steps), guidance ? guidance.element : []),
    h("div", { className: "pictures" }, figure(noised, "noise, step by step"), figure(estimate, "the model's estimate of the image")),
    h("p", {}, film.element), h("p", {}, time), model.cluster_shares ? [] : h("p", { className: "dim" }, "The same with hfgen: ", same));
}

const NO_TRUNCATION = 1000; // for hfgen sample, which would take the model's own truncation without the option

// Draw with a VAE or a GAN, at once.
function decodingPanel(model) {
  const image = picture("image", "the drawn images"), time = h("output", { id: "time" });
  const what = subject(model, "draw", () => start(), [16, 1, 64]);
  const learnt = [["mixture", "the fitted mixture"], ["flow", "the trained flow"]].filter(([name]) => name in model.files);
  const prior = learnt.length ? choice("latents from", [["normal", "the normal prior"], ...learnt], model.prior, () => start()) : null;
  const truncation = model.family === "gan" ? slider("truncation", "truncation", { min: 0.2, max: 3, step: 0.1, value: Math.min(3, model.truncation ?? 3), text: value => (value === 3 ? "none" : value.toFixed(1)), oninput: () => start() }) : null;
  const same = h("code");
  const start = newest(async goOn => {
    await opened(model);
    const since = performance.now(), options = { seed: what.seed.value, labels: what.labels, count: what.count };
    if (prior) options.prior = prior.value;
    if (truncation) options.truncation = truncation.input.valueAsNumber === 3 ? null : truncation.input.valueAsNumber;
    const truncated = options.truncation ?? (model.truncation && NO_TRUNCATION);
    const images = await draw(model, options);
    goOn();
    paint(image, images, model.image_shape, columnsOf(what.count));
    time.textContent = `${what.count === 1 ? "1 image" : `${what.count} images`} in ${seconds(since)}`;
    same.textContent = `hfgen sample ${model.source}${what.flags}${prior ? ` --prior ${prior.value}` : ""}${truncated ? ` --truncation ${truncated}` : ""}`;
    remember({ seed: what.seed.value });
  });
  start();
  return h("section", { "aria-label": "draw" }, h("h2", {}, "Draw"),
    h("div", { className: "controls" }, what.elements, prior ? prior.element : [], truncation ? truncation.element : []),
    h("div", { className: "pictures" }, figure(image, "drawn images")), h("p", {}, time), h("p", { className: "dim" }, "The same with hfgen: ", same));
}

// The plane of two latents, under the mouse or the arrow keys.
const REACH = 3, CELLS = 9;
function planePanel(model, memory) {
  const map = h("canvas", { id: "plane", className: "plane", tabIndex: 0, role: "application", "aria-label": "the plane of two latents; move with the mouse or the arrow keys", width: 1, height: 1 });
  const marker = h("span", { className: "marker" }), image = picture("decoded", "the image at this place"), place = h("output", { id: "place" });
  const label = classList(model, "plane-class", () => drawMap());
  const axis = (id, index) => h("select", { id, onchange: () => drawMap() }, model.dimensions.map((dimension, rank) => h("option", { value: dimension, selected: rank === index }, `latent ${dimension}`)));
  const axes = [axis("across", 0), ...(model.latent_dim > 1 ? [axis("down", 1)] : [])];
  let at = [0, 0];
  const latentsAt = places => joined(places.map(position => {
    const latent = memory.latent ? memory.latent.slice() : new Float32Array(model.latent_dim);
    axes.forEach((select, index) => (latent[Number(select.value)] = position[index]));
    return latent;
  }));
  const labels = count => (label ? Array(count).fill(Number(label.value)) : null);
  const drawMap = newest(async goOn => {
    await opened(model);
    const places = Array.from({ length: CELLS ** 2 }, (_, i) => [i % CELLS, Math.floor(i / CELLS)].map(cell => ((2 * cell) / (CELLS - 1) - 1) * REACH));
    const images = await decode(model, latentsAt(places), labels(places.length));
    goOn();
    paint(map, images, model.image_shape, CELLS);
    decodeHere();
  });
  const decodeHere = newest(async goOn => {
    await opened(model);
    goOn();
    const images = await decode(model, latentsAt([at]), labels(1));
    goOn();
    paint(image, images, model.image_shape);
    place.textContent = axes.map((select, index) => `latent ${select.value}: ${at[index].toFixed(2)}`).join(", ");
  });
  function moveTo(position, isOnMap = true) {
    const onMap = position.map(value => Math.max(-REACH, Math.min(REACH, value)));
    at = isOnMap ? onMap : position;
    const share = (value = 0) => `${50 + (value / REACH) * 50 * ((CELLS - 1) / CELLS)}%`;
    Object.assign(marker.style, { left: share(onMap[0]), top: share(onMap[1]) });
    decodeHere();
  }
  for (const name of ["pointermove", "pointerdown"])
    map.addEventListener(name, event => {
      const box = map.getBoundingClientRect();
      const share = (value, start, size) => ((2 * (value - start)) / size - 1) * REACH * (CELLS / (CELLS - 1));
      moveTo([share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)]);
    });
  map.addEventListener("keydown", event => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    moveTo(at.map((value, index) => value + step[index] * (event.shiftKey ? 0.5 : 0.1)));
  });
  memory.onLatent = () => {
    drawMap();
    moveTo(axes.map(select => memory.latent[Number(select.value)]), false);
  };
  moveTo(at);
  drawMap();
  return h("section", { "aria-label": "latents" }, h("h2", {}, "Latents"),
    h("p", {}, `Each image is made of ${model.latent_dim} numbers, its latents. Move over the map to change two of them, by default those that change the image most; the others stay at 0${"encoder" in model.files ? ", or as in your own picture below" : ""}.`),
    h("div", { className: "controls" }, labelled("across", axes[0]), labelled("down", axes[1]), labelled("class", label)),
    h("div", { className: "pictures" }, h("figure", {}, h("div", { className: "map" }, map, marker), h("figcaption", {}, `from −${REACH} to ${REACH} in both directions`)), figure(image, place)));
}

// A path between the latents of two seeds.
function interpolationPanel(model) {
  const image = picture("between", "the image between two"), first = seedField("first-seed", () => start(), "first seed"), last = seedField("last-seed", () => start(), "last seed");
  last.value = 1;
  const share = slider("share", "between", { min: 0, max: 1, step: 0.02, value: 0.5, text: value => `${Math.round(100 * value)} %`, oninput: () => start() });
  const row = picture("row", "images between two"), label = classList(model, "between-class", () => start());
  const start = newest(async goOn => {
    await opened(model);
    const ends = await drawLatents(model, await Promise.all([first, last].map(field => imageSeed(field.value, 0))));
    const [a, b] = [ends.slice(0, model.latent_dim), ends.slice(model.latent_dim)];
    const shares = [...Array.from({ length: 9 }, (_, i) => i / 8), share.input.valueAsNumber];
    const images = await decode(model, joined(shares.map(each => spherical(a, b, each))), label ? shares.map(() => Number(label.value)) : null);
    goOn();
    paint(row, images.slice(0, 9 * sizeOf(model)), model.image_shape, 9);
    paint(image, images.slice(9 * sizeOf(model)), model.image_shape);
  });
  start();
  return h("section", { "aria-label": "between two" }, h("h2", {}, "Between two"),
    h("div", { className: "controls" }, first.element, last.element, labelled("class", label), share.element),
    h("div", { className: "pictures" }, figure(row, "from the first to the last"), figure(image, "at the slider")));
}

const takeButton = (memory, sketch) => h("button", { type: "button", id: "take", onclick: () => (memory.image ? sketch.set(memory.image) : say("Nothing is drawn yet")) }, "take the image drawn above");

// Change a picture with a diffusion model.
function editingPanel(model, memory) {
  const noised = picture("edit-noised", "your picture with noise"), result = picture("edited", "the result"), time = h("output", { id: "edit-time" });
  const sketch = new Sketch(model.image_shape, () => {}, { canMark: true });
  const strength = slider("strength", "noise", { min: 0.05, max: 1, step: 0.05, value: 0.6, text: value => `${Math.round(100 * value)} %` });
  const seed = seedField("edit-seed", () => {});
  const label = classList(model, "edit-class", () => {}, model.learnt_no_class ? h("option", { value: "" }, "any") : []);
  const labels = () => (model.null_label === undefined ? null : [label && label.value !== "" ? Number(label.value) : model.null_label]);
  const timed = job => newest(async goOn => {
    await opened(model);
    const since = performance.now();
    const onStep = (x, image) => {
      goOn();
      if (x) paint(noised, x, model.image_shape);
      if (image) paint(result, image, model.image_shape);
      time.textContent = seconds(since);
    };
    const image = await job({ seed: seed.value, labels: labels(), onStep });
    goOn();
    paint(result, image, model.image_shape);
    time.textContent = `done in ${seconds(since)}`;
  });
  const vary = timed(options => editing.vary(model, sketch.image, { ...options, strength: strength.input.valueAsNumber, steps: 12 }));
  const inpaint = timed(options => {
    if (!sketch.mask.includes(1)) throw new Said("first mark what to fill in");
    const noise = sketch.image.map((value, i) => (sketch.mask[i % sketch.mask.length] ? 0 : value));
    paint(noised, noise, model.image_shape);
    return editing.inpaint(model, sketch.image, sketch.mask, { ...options, steps: 15, resamples: 3 });
  });
  return h("section", { "aria-label": "your own picture" }, h("h2", {}, "Your own picture"),
    h("p", {}, "Draw something, add noise to it, and see what the model makes of it; or mark a part and let the model fill it in."),
    h("div", { className: "controls" }, sketch.controls, takeButton(memory, sketch)),
    h("div", { className: "controls" }, strength.element, labelled("class", label), seed.element,
      h("button", { type: "button", id: "vary", onclick: vary }, "add noise and denoise"), h("button", { type: "button", id: "inpaint", onclick: inpaint }, "fill in what is marked")),
    h("div", { className: "pictures" }, figure(sketch.canvas, "your picture"), figure(noised, "given to the model"), figure(result, "made by the model")), h("p", {}, time));
}

// Encode and decode a picture with a VAE.
function reconstructionPanel(model, memory) {
  const result = picture("reconstructed", "the reconstruction"), sketch = new Sketch(model.image_shape, () => start());
  const label = classList(model, "own-class", () => start());
  const start = newest(async goOn => {
    await opened(model);
    const class_labels = label ? [Number(label.value)] : null;
    const [means] = await run(model, "encoder", 1, { images: sketch.image, class_labels });
    const image = await decode(model, means, class_labels);
    goOn();
    paint(result, image, model.image_shape);
    memory.latent = means;
    memory.onLatent();
  });
  return h("section", { "aria-label": "your own picture" }, h("h2", {}, "Your own picture"),
    h("p", {}, "What you draw is encoded to latents and decoded again. The map above then shows its surroundings."),
    h("div", { className: "controls" }, sketch.controls, labelled("class", label)),
    h("div", { className: "pictures" }, figure(sketch.canvas, "your picture"), figure(result, "its reconstruction")));
}

// Translate a picture.
function translationPanel(model) {
  const given = picture("given", "what the network is given"), result = picture("translated", "the result"), time = h("output", { id: "time" });
  const sketch = new Sketch(model.files.generator.inputs.sample, () => start());
  const takesNoise = model.degradation.includes("gaussian_noise");
  const noise = slider("noise", "noise", { min: 0, max: 0.8, step: 0.05, value: takesNoise ? 0.3 : 0, text: value => value.toFixed(2), oninput: () => start() });
  const seed = seedField("noise-seed", () => start());
  const direction = "inverse_generator" in model.files ? choice("direction", [["generator", "there"], ["inverse_generator", "back"]], "generator", () => start()) : { value: "generator", element: [] };
  const start = newest(async goOn => {
    await opened(model);
    const since = performance.now(), options = { network: direction.value, noise_std: noise.input.valueAsNumber, seed: seed.value };
    const image = await translate(model, sketch.image, { ...options, onNoise: noised => paint(given, noised, sketch.shape) });
    goOn();
    paint(result, image, model.image_shape);
    time.textContent = `done in ${seconds(since)}`;
  });
  start();
  return h("section", { "aria-label": "translate" }, h("h2", {}, "Translate"),
    h("p", {}, model.degradation ? `The network was trained to undo: ${model.degradation}. Draw, or open a picture.` : "Draw, or open a picture."),
    h("div", { className: "controls" }, sketch.controls, direction.element, noise.element, seed.element),
    h("div", { className: "pictures" }, figure(sketch.canvas, "your picture"), figure(given, "given to the network"), figure(result, "made by the network")), h("p", {}, time));
}

// Several models on the same noise, one after the other, with their times.
const IMAGES_OF_EACH = 10;
function comparisonPanel() {
  const entries = drawers.map(model => {
    const canvas = picture(`of-${model.name}`, `images of ${model.name}`), time = h("output", {}, "–");
    const check = h("input", { type: "checkbox", id: `in-${model.name}`, checked: true });
    return { model, canvas, time, check, element: h("figure", { className: "entry" }, h("label", { htmlFor: check.id }, check, ` ${model.name}`), canvas, h("figcaption", {}, time, h("br"), model.quality)) };
  });
  const seed = seedField("comparison-seed", () => start());
  seed.value = state().get("seed") ?? 0;
  const start = newest(async goOn => {
    for (const entry of entries) entry.time.textContent = entry.check.checked ? "waits" : "–";
    for (const { model, canvas, time } of entries.filter(entry => entry.check.checked)) {
      await opened(model);
      goOn();
      const since = performance.now();
      const images = await draw(model, {
        seed: seed.value, count: IMAGES_OF_EACH,
        onStep: (x, image, step, of) => {
          goOn();
          paint(canvas, image, model.image_shape, 5);
          time.textContent = `step ${step} of ${of}, ${seconds(since)}`;
        },
      });
      goOn();
      paint(canvas, images, model.image_shape, 5);
      time.textContent = `${IMAGES_OF_EACH} images in ${seconds(since)}`;
    }
    remember({ seed: seed.value });
  });
  return h("section", { "aria-label": "side by side" }, h("h2", {}, "Side by side"),
    h("p", {}, "The models draw one after the other; those of the same size start from the same noise. Lower Fréchet distances are better; real images do not reach 0 either."),
    h("div", { className: "controls" }, seed.element, h("button", { type: "button", id: "start", onclick: start }, "start")),
    h("div", { className: "entries" }, entries.map(entry => entry.element)));
}

// ---------------------------------------------------------------------------------------------------------------------
// Which model is shown; the address keeps it.

const main = document.getElementById("model");
const COMPARISON = "side by side";
const drawers = models.filter(model => model.use !== "translate");

// Open a model and say what is loaded.
async function opened(model) {
  if (model.sessions) return say(`${model.name} is loaded. Nothing you do here leaves this device.`);
  const size = model.bytes + (runtime ? 0 : site.runtime_bytes);
  say(`Loading ${model.name}: ${megabytes(size)}…`);
  const since = performance.now();
  await open(model);
  say(`${model.name} is loaded (${megabytes(size)} in ${seconds(since)}). Nothing you do here leaves this device.`);
}

function about(model) {
  const facts = [model.kind, model.quality, megabytes(model.bytes)].filter(Boolean);
  return h("p", { className: "dim" }, facts.join(" · "));
}

function show(name) {
  shown++;
  say("");
  for (const button of document.querySelectorAll("#models button")) button.setAttribute("aria-pressed", String(button.dataset.name === name));
  remember({ model: name });
  if (name === COMPARISON) return main.replaceChildren(comparisonPanel());
  const model = models.find(each => each.name === name), memory = {};
  const panels = { denoise: [denoisingPanel, editingPanel], decode: [decodingPanel, ...(model.dimensions ? [planePanel] : []), interpolationPanel, ...("encoder" in model.files ? [reconstructionPanel] : [])], translate: [translationPanel] };
  main.replaceChildren(about(model), ...panels[model.use].map(panel => panel(model, memory)));
}

const tabs = [...models.map(model => model.name), ...(drawers.length > 1 ? [COMPARISON] : [])];
document.getElementById("models").append(...tabs.map(name => h("button", { type: "button", "data-name": name, onclick: () => show(name) }, name)));
function showAddressed() {
  const wanted = state().get("model");
  show(tabs.includes(wanted) ? wanted : tabs[0]);
}
addEventListener("hashchange", showAddressed);
if (self.crypto?.subtle) showAddressed();
else say("This browser computes no hashes on a page that is not secure: open it from disk, from localhost or by https.");
