"use strict";
// The tab How good: a model's evaluation, what it may have copied, and a race.

function qualityTab(root) {
  return withModel(root, ["denoise", "few_steps", "decode", "translate"], "There is no model to judge.", (facts, models) => {
    const place = h("div", { id: "evaluation" }), same = sameAs(), panels = [place, same.element];
    same.say(`hfgen evaluate ${word(facts.name)}`, `hfgen.evaluate(${JSON.stringify(facts.name)})`);
    counted(showEvaluation(facts, place));
    if (facts.use !== "translate") {
      panels.push(copiesPanel(facts));
      const others = models.filter(model => ["denoise", "few_steps", "decode"].includes(model.use));
      const own = models.find(model => model.name === facts.name).dataset, rivals = new Map(); // of each kind, on the same data
      for (const model of others) if (model.dataset === own && !rivals.has(model.kind)) rivals.set(model.kind, model.name);
      panels.push(racePanel(others, "The race", "64 images of each, one model after the other, at their real speed. Of models of the same data set, the one with the lower Fréchet distance is better; real images do not reach 0 either.", 64, model => model.name === facts.name || [...rivals.values()].slice(0, 4).includes(model.name)));
    }
    return panels;
  });
}

const withDeviation = measure => (measure ? short(measure.value) + (measure.std ? ` ± ${Number(measure.std.toPrecision(1))}` : "") : "");

const number = value => (value === null ? "–" : short(value));

async function showEvaluation(facts, place) {
  const { evaluation } = await ask(withQuery("evaluation", { model: facts.name }));
  if (!evaluation) return void place.replaceChildren(h("h2", {}, "Evaluation"), h("p", {}, `${facts.name} has not been evaluated; the command below measures how good it is.`));
  const header = evaluation.spaces.flatMap(space => [h("th", {}, `generated (${space})`), h("th", {}, "real")]);
  const rows = evaluation.measures.map(measure => h("tr", {}, h("td", {}, ...term(measure.title, measure.name)), measure.cells.flatMap(cell => [h("td", { className: "number" }, h("b", {}, withDeviation(cell.value))), h("td", { className: "number" }, cell.real === null || cell.real === undefined ? "" : short(cell.real))]), h("td", { className: "dim" }, measure.better)));
  const classes = evaluation.classes.slice(0, 1).flatMap(({ judge, accuracy, classes }) => [h("h3", {}, "Classes, the worst first"), h("p", {}, `${percent(accuracy)} of the images show the requested class, by the judge ${judge}.`), bars(classes.map(each => [each.name, each.accuracy, percent(each.accuracy) + (each.distance === null ? "" : ` · FD ${short(each.distance)}`), false]))]);
  const pictures = evaluation.pictures.filter(captionOf);
  place.replaceChildren(
    h("h2", {}, "Evaluation"), h("div", { className: "verdict" }, h("b", {}, "In short"), h("ul", {}, evaluation.verdict.map(sentence => h("li", {}, sentence)))),
    rows.length ? h("p", {}, `${evaluation.protocol.num_images.toLocaleString("en")} generated images beside ${evaluation.protocol.reference_images.toLocaleString("en")} test images of ${evaluation.protocol.dataset}; “real” is the same metric of real training images.`) : "",
    rows.length ? h("div", { className: "scroll" }, h("table", {}, h("tr", {}, h("th", {}, "metric"), header, h("th", {}, "better")), rows)) : "",
    evaluation.restoration.length ? h("div", { className: "scroll" }, h("table", {}, h("tr", {}, ["input", "PSNR (dB)", "SSIM"].map(title => h("th", {}, title))), evaluation.restoration.map(row => h("tr", {}, h("td", {}, row.input), ["psnr", "ssim"].map(name => h("td", { className: "number" }, `${number(row[`given_${name}`])} → ${number(row[`made_${name}`])}`)))))) : "",
    ...classes,
    ...pictures.map(name => h("figure", {}, h("img", { src: withQuery("/api/file", { run: facts.name, file: name }), alt: captionOf(name), loading: "lazy" }), h("figcaption", {}, captionOf(name)))));
}

const CAPTIONS = { "images.png": "The first of the evaluated images, not selected", "neighbours.png": "The generated images nearest to a training image, and that image", restored: "Inputs, outputs and what they should be" };
const captionOf = name => Object.entries(CAPTIONS).find(([part]) => name.includes(part))?.[1];

// An image, and the training images nearest to it.
function copiesPanel(facts) {
  const place = h("div", { id: "copies" }), seed = seedField("copy-seed", () => {});
  const label = classList(facts.classes.length ? facts : {}, "copy-class", () => {});
  seed.value = keptNumber("copy_seed", 0);
  if (label) choose(label, "copy_class", 0);
  const start = newest(async goOn => {
    remember({ copy_seed: seed.value, ...(label ? { copy_class: label.value } : {}) });
    place.replaceChildren(h("p", { className: "dim" }, "Comparing with all training images; the first time takes a while…"));
    const found = await ask("neighbours", { model: facts.name, seed: seed.value, ...(label ? { class_labels: [facts.classes[label.value]] } : {}) });
    goOn();
    const sample = picture("sample-image", "the sample"), image = unpacked(found.sample), near = unpacked(found.images), size = image.data.length;
    showImages(sample, image);
    const pictures = found.distances.map((distance, index) => {
      const canvas = picture(`near-${index}`, `training image ${index + 1}`);
      paint(canvas, near.data.slice(index * size, (index + 1) * size), near.shape);
      return figure(canvas, `distance ${short(distance)}`);
    });
    const [low, median] = [found.unseen["0.01"], found.unseen["0.5"]], nearest = found.distances[0];
    const verdict = nearest < low ? "nearer to a training image than 99 of 100 real images that the model has not seen: look at the pair" : nearest < median ? "as near as unseen real images often are: no sign of copying" : "as far from the training images as unseen real images are: no sign of copying";
    place.replaceChildren(h("div", { className: "neighbours" }, figure(sample, "the sample"), pictures), h("p", {}, `It is ${verdict}. Of unseen real images, half are nearer than ${short(median)}, and one in a hundred nearer than ${short(low)} (features of the judge ${found.judge}).`));
  }, { last: Promise.resolve() });
  return h("section", { "aria-label": "is it copied?" }, h("h2", {}, "Is it copied?"), h("p", {}, "Draws an image, and shows the five training images that are nearest to it."),
    h("div", { className: "controls" }, seed.element, labelled("class", label), h("button", { type: "button", id: "neighbours", onclick: start }, "find its nearest training images")), place);
}
