"use strict";
// The tab Your picture: draw or open a picture, and let a model see, reconstruct, edit or translate it.

function ownPictureTab(root) {
  return withModel(root, ["denoise", "decode", "translate"], "There is no model that takes a picture.", facts => {
    if (facts.use === "denoise" && !facts.edits) return [h("p", {}, "Editing needs a diffusion model of pixels, and this one denoises the latents of a VAE. Choose another model.")];
    if (facts.use === "denoise") return [editingPanel(facts)];
    if (facts.use === "translate") return [translationPanel(facts)];
    return facts.encodes ? [reconstructionPanel(facts)] : [h("p", {}, "A GAN has no encoder, so it cannot take a picture. Choose a VAE, a diffusion model or an image-to-image model.")];
  });
}

// A canvas with the class that a judge predicts for it; the picture is kept when another model of the same size is chosen.
const drawn = { // pictures by their shape, kept until the tab of the browser is closed
  get: key => Float32Array.from(JSON.parse(sessionStorage.getItem(`picture ${key}`) ?? "[]")),
  set: (key, image) => sessionStorage.setItem(`picture ${key}`, JSON.stringify([...image].map(value => +value.toFixed(4)))),
};
function pictureOf(facts, onchange, { canMark = false, given = sketch => sketch.image } = {}) {
  const key = String(facts.image_shape), seen = h("div", { id: "seen" });
  const judge = newest(async goOn => {
    if (isEmpty(sketch)) return void seen.replaceChildren();
    const { judges } = await ask("judge", { model: facts.name, image: asFile(sketch.image, sketch.shape) });
    goOn();
    seen.replaceChildren(...judges.slice(0, 1).flatMap(found => [h("p", {}, `Predicted class (judge ${found.judge}):`), bars(found.classes.map(each => [each.class, each.probability, percent(each.probability), each !== found.classes[0]]))]));
  }, { last: Promise.resolve() });
  const changed = () => {
    drawn.set(key, sketch.image);
    if (facts.has_judge) judge();
    onchange();
  };
  const sketch = new Sketch(facts.image_shape, changed, { canMark, read: async file => {
    const { data } = await tracked(uploadedPicture(file, facts.name));
    say("");
    return data;
  } });
  if (drawn.get(key).length) {
    sketch.image = drawn.get(key);
    sketch.show();
    if (facts.has_judge) judge();
  }
  const sample = h("button", { type: "button", id: "sample", onclick: () => counted(takeSample(facts, sketch)) }, "take an image of a model");
  const save = h("button", { type: "button", id: "save", onclick: () => saveFiles(sketch, given(sketch)) }, "save");
  return { sketch, seen, controls: [sketch.controls, sample, save] };
}

const isEmpty = sketch => !sketch.image.some(value => value > -0.9);

// Save the picture, and what is marked, under the names that the commands below have.
function saveFiles(sketch, image) {
  const files = { "picture.png": asFile(image, sketch.shape), ...(sketch.mask.includes(1) ? { "mask.png": maskOf(sketch) } : {}) };
  for (const [download, href] of Object.entries(files)) h("a", { download, href }).click();
  say(`Saved as ${Object.keys(files).join(" and ")}`);
}

const maskOf = sketch => asFile(Float32Array.from(sketch.mask, marked => (marked ? 1 : -1)), [1, ...sketch.shape.slice(1)]);

// Put an image of the chosen model, or of another for the same images, on the canvas.
async function takeSample(facts, sketch) {
  const model = await modelFor(facts);
  if (!model) return say("No model here draws images of this size");
  const { images } = await resultOf("draw", { model: model.name, seed: Math.floor(Math.random() * 1e6), ...(model.classes.length ? { class_labels: [model.classes[Math.floor(Math.random() * model.classes.length)]] } : {}) });
  sketch.set(images.data);
}

const EDITS = {
  vary: ["add noise and denoise", "strength"],
  inpaint: ["fill in what is marked", null],
  change_class: ["change its class", "strength"],
  denoise: ["remove noise", null],
};

function editingPanel(facts) {
  const given = picture("step", "each step"), result = picture("edited", "the result"), time = h("output", { id: "time" }), same = sameAs();
  const { sketch, seen, controls } = pictureOf(facts, () => {}, { canMark: true });
  const strength = slider("strength", "noise", { min: 0.05, max: 1, step: 0.05, value: keptNumber("strength", 0.6), text: value => percent(value) });
  const seed = seedField("seed", () => {});
  seed.value = keptNumber("seed", 0);
  const label = classList(facts.classes.length ? facts : {}, "class", () => {}, facts.learnt_no_class ? h("option", { value: "" }, "any") : []);
  if (label) choose(label, "class", facts.learnt_no_class ? "" : 0);
  const start = task => newest(async goOn => {
    const since = performance.now(), fields = { task, seed: seed.value };
    if (task !== "inpaint" && isEmpty(sketch)) throw new Said("first draw something, open a picture, or take an image of a model");
    if (task === "inpaint" && !sketch.mask.includes(1)) throw new Said("first choose “mark what to fill in”, and mark a part of the picture");
    if (task === "change_class" && label.value === "") throw new Said("first choose the class that it shall have");
    if (EDITS[task][1]) fields.strength = strength.input.valueAsNumber;
    if (label && label.value !== "") fields.class_labels = [facts.classes[label.value]];
    remember({ seed: seed.value, strength: strength.input.value, class: label ? label.value : "" });
    const { seed: number, ...shown } = fields;
    same.update("translate", facts.name, { input: "picture.png", ...(task === "inpaint" ? { mask: "mask.png" } : {}), ...shown, ...(["vary", "inpaint"].includes(task) ? { seed: number } : {}) });
    const body = { model: facts.name, ...fields, image: asFile(sketch.image, sketch.shape) };
    if (task === "inpaint") body.mask = maskOf(sketch);
    const last = await resultOf("edit", body, goOn, state => {
      showImages(given, state.images);
      time.textContent = `step ${state.step + 1}, ${seconds(since)}`;
    });
    showImages(result, last.images);
    time.textContent = `done in ${seconds(since)}`;
  });
  const tasks = Object.entries(EDITS).filter(([task]) => task !== "change_class" || facts.classes.length);
  const buttons = tasks.map(([task, [text]]) => h("button", { type: "button", id: task, onclick: start(task) }, text));
  return h("section", { "aria-label": "your picture" }, h("h2", {}, "Your picture"),
    h("p", {}, "Draw something, open a picture, or take one of a model; then let the model change it."),
    h("div", { className: "controls" }, controls),
    h("div", { className: "controls" }, h("span", {}, strength.element, term("", "strength")), labelled("class", label), seed.element),
    h("div", { className: "controls" }, buttons),
    h("div", { className: "pictures" }, h("figure", {}, sketch.canvas, h("figcaption", {}, "your picture"), seen), figure(given, "each step"), figure(result, "the result")), h("p", {}, time), same.element);
}

function reconstructionPanel(facts) {
  const result = picture("reconstructed", "the reconstruction"), place = picture("place", "its place on the plane of two latents"), coded = h("p", { className: "dim", id: "coded" }), same = sameAs();
  const label = classList(facts.classes.length ? facts : {}, "class", () => start());
  const start = newest(async goOn => {
    const body = { model: facts.name, image: asFile(sketch.image, sketch.shape), ...(label ? { class_labels: [facts.classes[label.value]] } : {}) };
    same.say("", `hfgen.load(${JSON.stringify(facts.name)}).reconstruct(PIL.Image.open("picture.png")${label ? `, class_labels=${JSON.stringify(facts.classes[label.value])}` : ""}).images[0]`);
    const { images } = await resultOf("reconstruct", body, goOn);
    showImages(result, images);
    const { means, stddevs } = await ask("encode", body);
    goOn();
    const [x, y = x] = facts.dimensions;
    coded.textContent = `latent ${x}: ${means[x].toFixed(2)} ± ${stddevs[x].toFixed(2)}, latent ${y}: ${means[y].toFixed(2)} ± ${stddevs[y].toFixed(2)}; these two change the image most`;
    const around = [1, 0, -1].flatMap(down => [-1, 0, 1].map(across => means.map((value, index) => value + (index === x ? across : 0) + (index === y && x !== y ? down : 0))));
    const near = await resultOf("decode", { model: facts.name, latents: around, ...(label ? { class_labels: [facts.classes[label.value]] } : {}) }, goOn);
    showImages(place, near.images, 3);
    remember({ latents: means.map(value => +value.toFixed(3)).join(" ") });
  });
  const { sketch, seen, controls } = pictureOf(facts, start);
  if (!isEmpty(sketch)) start();
  return h("section", { "aria-label": "your picture" }, h("h2", {}, "Your picture"),
    h("p", {}, "What you draw is encoded to ", ...term("latents"), " and decoded again. The tab Latents then starts there."),
    h("div", { className: "controls" }, controls, labelled("class", label)),
    h("div", { className: "pictures" }, h("figure", {}, sketch.canvas, h("figcaption", {}, "your picture"), seen), figure(result, "its reconstruction"), figure(place, "around it on the plane of latents")), coded, same.element);
}

function translationPanel(facts) {
  const given = picture("given", "what the network is given"), result = picture("translated", "the result"), time = h("output", { id: "time" }), same = sameAs();
  const noise = slider("noise", "noise", { min: 0, max: 0.8, step: 0.05, value: keptNumber("noise", (facts.degradation ?? "").includes("gaussian_noise") ? 0.3 : 0), text: value => value.toFixed(2), oninput: () => start() });
  const direction = facts.has_inverse ? choice("direction", [[false, "there"], [true, "back"]], kept("inverse", "") === "true", () => start()) : null;
  const start = newest(async goOn => {
    const since = performance.now(), fields = { noise: noise.input.valueAsNumber, ...(direction ? { inverse: direction.value } : {}), ...(facts.takes_noise_std ? { noise_std: noise.input.valueAsNumber } : {}) };
    remember({ noise: noise.input.value, ...(direction ? { inverse: direction.value } : {}) });
    const { noise: added, ...shown } = fields;
    same.update("translate", facts.name, { input: "picture.png", ...Object.fromEntries(Object.entries(shown).filter(([, value]) => value !== false)) });
    const last = await resultOf("translate", { model: facts.name, image: asFile(sketch.image, sketch.shape), ...fields }, goOn);
    noised = last.noised.data;
    showImages(given, last.noised);
    showImages(result, last.images);
    time.textContent = `done in ${seconds(since)}`;
  });
  let noised = null; // what the network is given, which "save" saves, so that the command makes the same of it
  const { sketch, seen, controls } = pictureOf(facts, start, { given: sketch => noised ?? sketch.image });
  start();
  return h("section", { "aria-label": "your picture" }, h("h2", {}, "Your picture"),
    h("p", {}, facts.degradation ? `The network was trained to undo: ${facts.degradation}.` : "The network translates pictures."),
    h("div", { className: "controls" }, controls, noise.element, direction ? direction.element : []),
    h("div", { className: "pictures" }, h("figure", {}, sketch.canvas, h("figcaption", {}, "your picture"), seen), figure(given, "given to the network"), figure(result, "made by the network")), h("p", {}, time), same.element);
}
