"use strict";
// The tab Draw.

const GRID_STEPS = [2, 4, 8, 15, 30], GRID_SCALES = [1, 1.5, 2, 4], STEPS = [1, 2, 4, 8, 15, 30, 50, 100];
const NO_TRUNCATION = 1000; // for a model that would truncate by itself
const COUNTS = [1, 4, 16, 64];

function drawTab(root) {
  return withModel(root, ["denoise", "few_steps", "decode"], "There is no model that draws.", (facts, models) => {
    const controls = drawControls(facts);
    const panels = [facts.use === "denoise" ? denoisingPanel(facts, controls) : decodingPanel(facts, controls)];
    if (facts.use === "denoise") panels.push(settingsPanel(facts, controls));
    const others = models.filter(model => model.use !== null);
    if (others.length > 1) {
      const own = others.find(model => model.name === facts.name)?.dataset;
      const second = others.find(model => model.name !== facts.name && model.dataset === own) ?? others.find(model => model.name !== facts.name);
      panels.push(racePanel(others, "Side by side", "The chosen models draw one after the other; those of the same image size start from the same noise.", 16, model => model.name === facts.name || model === second));
    }
    return panels;
  });
}

// What to draw, and how: controls whose values the address keeps.
function drawControls(facts) {
  const controls = { onchange: () => {} };
  const changed = () => controls.onchange();
  const classes = facts.classes.length ? h("select", { id: "class", onchange: changed }, h("option", { value: "" }, "each in turn"), facts.classes.map((name, index) => h("option", { value: index }, name))) : null;
  if (classes) choose(classes, "class", "");
  const counts = h("select", { id: "count", onchange: changed }, COUNTS.map(count => h("option", { value: count }, count)));
  choose(counts, "count", facts.use !== "denoise" ? 16 : facts.classes.length ? 4 : 1);
  const seed = seedField("seed", changed);
  seed.value = keptNumber("seed", 0);
  controls.elements = [labelled("class", classes), h("label", { htmlFor: "count" }, "images ", counts), seed.element];
  controls.body = () => ({ model: facts.name, num_images: Number(counts.value), seed: seed.value, ...(classes && classes.value !== "" ? { class_labels: [facts.classes[classes.value]] } : {}) });
  controls.remember = () => remember({ seed: seed.value, count: counts.value, class: classes ? classes.value : "" });
  if (facts.use === "denoise") addSampler(facts, controls, changed);
  return controls;
}

function addSampler(facts, controls, changed) {
  const own = facts.sampler, all = [...new Set([...STEPS, own.num_inference_steps])].filter(count => count <= facts.num_train_timesteps).sort((a, b) => a - b);
  const steps = h("select", { id: "steps", onchange: changed }, all.map(count => h("option", { value: count }, count === own.num_inference_steps ? `${count} (its own)` : count)));
  choose(steps, "steps", own.num_inference_steps);
  const scheduler = h("select", { id: "scheduler", onchange: changed }, facts.schedulers.map(name => h("option", { value: name }, name)));
  choose(scheduler, "scheduler", own.scheduler);
  const guidance = facts.has_guidance ? slider("guidance", "guidance", { min: 0, max: 8, step: 0.25, value: keptNumber("guidance", own.guidance_scale), text: value => value.toFixed(2), oninput: changed }) : null;
  controls.elements.push(h("span", {}, h("label", { htmlFor: "steps" }, "steps ", steps), term("", "num_inference_steps")), h("span", {}, h("label", { htmlFor: "scheduler" }, "scheduler ", scheduler), term("", "scheduler")));
  if (guidance) controls.elements.push(h("span", {}, guidance.element, term("", "guidance_scale")));
  const body = controls.body, rememberRest = controls.remember;
  controls.body = () => ({ ...body(), num_inference_steps: Number(steps.value), scheduler: scheduler.value, ...(guidance ? { guidance_scale: guidance.input.valueAsNumber } : {}) });
  controls.remember = () => { rememberRest(); remember({ steps: steps.value, scheduler: scheduler.value, ...(guidance ? { guidance: guidance.input.value } : {}) }); };
  controls.set = values => {
    if (values.num_inference_steps) steps.value = values.num_inference_steps;
    if (guidance && values.guidance_scale !== undefined) { guidance.input.value = values.guidance_scale; guidance.show(); }
    changed();
  };
}

// Draw with a diffusion model; the film keeps each step.
function denoisingPanel(facts, controls) {
  const left = h("figcaption"), noised = picture("noised", "the noisy image"), image = picture("image", "the predicted image"), time = h("output", { id: "time" }), same = sameAs();
  let frames = [], isDone = false;
  const film = slider("film", "film", { min: 0, max: 0, step: 1, value: 0, text: step => (step ? `after step ${step}` : "noise"), oninput: () => frame(film.input.valueAsNumber) });
  function frame(index) {
    if (!frames[index]) return; // not drawn yet
    showImages(noised, frames[index].noised);
    showImages(image, frames[index].images);
    left.textContent = isDone && index === frames.length - 1 ? "the finished image, x_0" : "the noisy image, x_t";
  }
  const start = newest(async goOn => {
    const since = performance.now(), body = controls.body(), made = [];
    controls.remember();
    const { model, ...fields } = body;
    same.update("sample", model, fields);
    isDone = false;
    cancel.hidden = false;
    await resultOf("draw", body, goOn, state => {
      made.push(state);
      frames = made;
      film.input.max = made.length - 1;
      film.input.value = made.length - 1;
      film.show();
      frame(made.length - 1);
      time.textContent = `step ${state.step} of ${body.num_inference_steps}, ${seconds(since)}`;
    });
    isDone = true;
    cancel.hidden = true;
    frame(film.input.valueAsNumber);
    time.textContent = `${body.num_images === 1 ? "1 image" : `${body.num_images} images`} in ${seconds(since)}`;
  });
  const cancel = h("button", { type: "button", id: "cancel", hidden: true, onclick: () => { start.cancel(); cancel.hidden = true; time.textContent += ", cancelled"; } }, "cancel");
  controls.onchange = start;
  start();
  return h("section", { "aria-label": "draw" }, h("h2", {}, "Draw"), h("div", { className: "controls" }, controls.elements),
    h("div", { className: "pictures" }, h("figure", {}, noised, left), figure(image, "the image predicted from it")),
    h("p", {}, film.element, term("", "film"), " ", time, " ", cancel), same.element);
}

// Draw with a VAE, a GAN or a consistency model, at once.
function decodingPanel(facts, controls) {
  const image = picture("image", "the images"), time = h("output", { id: "time" }), same = sameAs();
  const prior = facts.priors?.length ? choice("latents from", facts.priors.map(name => [name, name]), facts.priors.includes(kept("prior", "")) ? kept("prior", "") : facts.sampler.prior, () => start()) : null;
  const steps = facts.steps ? choice("steps", facts.steps.map(count => [count, count]), keptNumber("steps", facts.sampler.num_inference_steps), () => start()) : null;
  const none = 4, own = facts.sampler.truncation;
  const truncation = facts.family === "gan" ? slider("truncation", "truncation", { min: 0.2, max: none, step: 0.1, value: keptNumber("truncation", Math.min(none, own ?? none)), text: value => (value === none ? "none" : value.toFixed(1)), oninput: () => start() }) : null;
  const start = newest(async goOn => {
    const since = performance.now(), body = controls.body();
    if (prior) body.prior = prior.value;
    if (steps) body.num_inference_steps = Number(steps.value);
    const threshold = truncation?.input.valueAsNumber;
    if (truncation && threshold < none) body.truncation = threshold;
    else if (own) body.truncation = NO_TRUNCATION;
    controls.remember();
    remember({ ...(prior ? { prior: prior.value } : {}), ...(steps ? { steps: steps.value } : {}), ...(truncation ? { truncation: truncation.input.value } : {}) });
    const { model, ...fields } = body;
    same.update("sample", model, fields);
    const { images } = await resultOf("draw", body, goOn);
    showImages(image, images);
    time.textContent = `${body.num_images === 1 ? "1 image" : `${body.num_images} images`} in ${seconds(since)}`;
  });
  controls.onchange = start;
  start();
  return h("section", { "aria-label": "draw" }, h("h2", {}, "Draw"),
    h("div", { className: "controls" }, controls.elements, steps ? h("span", {}, steps.element, term("", "num_inference_steps")) : [], prior ? h("span", {}, prior.element, term("", "prior")) : [], truncation ? h("span", {}, truncation.element, term("", "truncation")) : []),
    h("div", { className: "pictures" }, figure(image, "the images")), h("p", {}, time), same.element);
}

// One noise with several numbers of steps and guidance scales, each with its time and, where measured, its distance.
function settingsPanel(facts, controls) {
  const table = h("table", { className: "cells" }), note = h("p", { className: "dim" });
  const scales = facts.has_guidance ? GRID_SCALES : [null];
  const steps = GRID_STEPS.filter(count => count <= facts.num_train_timesteps);
  const start = newest(async goOn => {
    const body = { ...controls.body(), num_images: 1 }, measured = await measuredSettings(facts.name);
    goOn();
    note.textContent = measured.length ? "FD: the Fréchet distance, from hfgen compare-samplers." : `Run hfgen compare-samplers ${facts.name} to see the Fréchet distance of each setting here.`;
    table.replaceChildren(h("tr", {}, h("th", {}, scales[0] === null ? "steps" : "steps \\ guidance"), scales.map(scale => h("th", {}, scale ?? ""))));
    for (const count of steps) {
      const row = table.appendChild(h("tr", {}, h("th", {}, count)));
      for (const scale of scales) {
        const canvas = picture(`cell-${count}-${scale ?? 1}`, `${count} steps, guidance ${scale ?? 1}`), since = performance.now();
        const values = { num_inference_steps: count, ...(scale === null ? {} : { guidance_scale: scale }) };
        const text = h("span", {}, "…");
        row.append(h("td", {}, h("button", { type: "button", title: "draw with these settings", onclick: () => controls.set(values) }, canvas), h("br"), text));
        const { images } = await resultOf("draw", { ...body, ...values }, goOn);
        showImages(canvas, images);
        const learnt = (facts.learnt_steps[body.scheduler] ?? []).includes(count);
        const found = measured.find(each => each.scheduler === body.scheduler && each.num_inference_steps === count && Boolean(each.time_steps) === learnt && (scale === null || (each.guidance_scale ?? 1) === scale));
        text.textContent = seconds(since) + (learnt ? " · learnt steps" : "") + (found ? ` · FD ${short(found.frechet_distance.value)}` : "");
      }
    }
  });
  return h("section", { "aria-label": "settings" }, h("h2", {}, facts.has_guidance ? "Steps and guidance" : "Steps"),
    h("p", {}, `The same noise with several settings. More steps cost time${facts.has_guidance ? "; more guidance makes clearer images, with less variety" : ""}. Click a picture to draw with its settings.`),
    h("button", { type: "button", id: "settings", onclick: start }, "draw all settings"), note, h("div", { className: "scroll" }, table));
}

const measuredSettings = async name => (await ask(withQuery("evaluation", { model: name }))).comparison?.settings ?? [];
