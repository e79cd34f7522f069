"use strict";
// The first tab, for newcomers: the families of models, and a tour.

const FAMILIES = [
  { kinds: /^diffusion/, title: "Diffusion", text: "Starts from noise and removes it in small steps. The best pictures and the most variety, but many steps.", action: "watch it remove the noise", go: { tab: "draw" } },
  { kinds: /^GAN/, title: "GAN", text: "Two networks compete: one makes images, the other tells them from real ones. One step, so it is fast; harder to train.", action: "draw sixteen at once", go: { tab: "draw" } },
  { kinds: /^VAE/, title: "VAE", text: "Squeezes an image into a few numbers and unfolds it again. Its map of images can be walked through.", action: "walk through its map", go: { tab: "latents" } },
  { kinds: /^image-to-image/, title: "Image to image", text: "Turns one image into another: without noise, larger, or filled in.", action: "let it clean a drawing", go: { tab: "picture" } },
];

const TOUR = [
  ["See a diffusion model draw", "Move the film back to the noise, and forward again. Then choose a class, and more guidance.", { tab: "draw" }, /^diffusion model with classes/],
  ["Let a GAN race it", "Sixteen or sixty-four images of each, at their real speed.", { tab: "quality", part: "race" }, /^GAN/],
  ["Walk through the latents of a VAE", "Each point of the map is an image. Drag the two points, and see what lies between them.", { tab: "latents" }, /^VAE/],
  ["Draw a digit yourself", "Add noise to it and let the model denoise it; or mark a part, and let it be filled in.", { tab: "picture" }, /^diffusion/],
  ["Ask how good it is", "Numbers beside those of real images, the worst classes, and whether an image is copied.", { tab: "quality" }, /^diffusion/],
  ["Train your own", "Two and a half minutes on a laptop: handwritten digits of 8×8 pixels. Press “start”, and watch them appear.", { tab: "watch", recipe: "ddpm_digits_quickstart", name: "my_first_model" }, null],
];

async function startTab(root) {
  const page = shown, models = await listModels();
  if (page !== shown) return;
  const named = kinds => {
    const found = models.filter(model => kinds && kinds.test(model.kind) && !model.problem);
    return found.find(model => model.quality) ?? found[0]; // one that was measured, if there is any
  };
  const cards = FAMILIES.map(({ kinds, title, text, action, go: target }) => {
    const model = named(kinds), image = picture(`card-${title}`, `images of a ${title} model`);
    const button = h("button", { type: "button", disabled: !model, onclick: () => go({ ...target, model: model.name }) }, action);
    return { model, image, element: h("article", { className: "card" }, h("h3", {}, title), h("p", {}, text), image, h("p", { className: "dim" }, model ? `${model.name}${model.quality ? ` · ${model.quality}` : ""}` : "There is no such model here yet; train one on the tab Watch."), button) };
  });
  const tour = TOUR.map(([title, text, target, kinds], index) => {
    const model = named(kinds), done = sessionStorage.getItem(`tour-${index}`);
    const button = h("button", { type: "button", disabled: kinds && !model, onclick: () => { sessionStorage.setItem(`tour-${index}`, "done"); go({ ...target, ...(model ? { model: model.name } : {}) }); } }, title);
    return h("li", { className: done ? "done" : "" }, button, ` ${text}`);
  });
  root.append(
    h("p", {}, "Four families of models learn to make images. Each can be tried here, trained here, and judged against real images."),
    h("div", { className: "cards" }, cards.map(card => card.element)),
    h("section", { "aria-label": "tour" }, h("h2", {}, "A tour of five minutes"), h("ol", { className: "tour" }, tour)));
  const fill = newest(async goOn => {
    for (const { model, image } of cards.filter(card => card.model)) {
      try {
        const facts = await factsOf(model.name);
        goOn();
        if (facts.use === "translate") await showTranslation(facts, image, goOn);
        else await resultOf("draw", { model: model.name, num_images: 9, seed: 0 }, goOn, state => showImages(image, state.images, 3));
      } catch (error) {
        if (!(error instanceof Said)) throw error;
        image.replaceWith(h("p", { className: "warn" }, error.message));
      }
    }
  });
  fill();
}

// A drawn image, with noise if the network removes that, and what it makes of it.
async function showTranslation(facts, canvas, goOn) {
  const model = await modelFor(facts);
  goOn();
  if (!model) return;
  const { images } = await resultOf("draw", { model: model.name, seed: 1 }, goOn);
  const noise = (facts.degradation ?? "").includes("gaussian_noise") ? 0.3 : 0;
  const made = await resultOf("translate", { model: facts.name, image: asFile(images.data, images.shape), noise, ...(facts.takes_noise_std ? { noise_std: noise } : {}) }, goOn);
  const isSameSize = String(made.images.shape) === String(made.noised.shape);
  paint(canvas, isSameSize ? joined([made.noised.data, made.images.data]) : made.images.data, made.images.shape, 2);
}
