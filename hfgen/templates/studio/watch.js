"use strict";
// The tab Watch: trainings, those of this page and any others in the folders of the studio.

const POLL_MILLISECONDS = 2000;

async function watchTab(root) {
  const page = shown;
  const list = h("div", { className: "scroll", id: "runs" }), record = h("div", { id: "record" }), form = h("div", { id: "form" });
  root.append(h("section", { "aria-label": "trainings" }, h("h2", {}, "Trainings"), list), record, h("section", { "aria-label": "new training" }, h("h2", {}, "Start a training"), form));
  const view = { name: kept("run", ""), others: new Set(kept("with", "").split("|").filter(Boolean)) };
  const refresh = async () => {
    const { runs, train_dir } = await ask("runs");
    if (page !== shown) return;
    if (!runs.some(run => run.name === view.name)) view.name = runs[0]?.name ?? "";
    showRuns(list, runs, view, refreshNow);
    if (view.name) await showRecord(record, view, refreshNow, page);
    else record.replaceChildren();
    form.dataset.folder = train_dir;
  };
  const refreshNow = () => counted(refresh());
  await counted(refresh());
  await counted(trainingForm(form, name => { view.name = name; remember({ run: name }); return refreshNow(); }));
  let isAway = false;
  const poll = async () => {
    if (page !== shown) return;
    if (!document.hidden) {
      try {
        await refresh();
        if (isAway) say("");
        isAway = false;
      } catch (error) {
        isAway = true;
        say(error instanceof Said ? error.message : "The studio does not answer; its trainings are saved if it was ended");
      }
    }
    setTimeout(poll, POLL_MILLISECONDS);
  };
  setTimeout(poll, POLL_MILLISECONDS);
}

function showRuns(place, runs, view, refresh) {
  const names = runs.map(run => run.name).join("|");
  if (place.dataset.names === names && place.contains(document.activeElement)) return; // not under a hand
  place.dataset.names = names;
  if (!runs.length) return place.replaceChildren(h("p", {}, "There are no trainings yet. Start one below; it takes a few minutes."));
  const rows = runs.map(run => {
    const choose = h("button", { type: "button", onclick: () => { view.name = run.name; place.dataset.names = ""; remember({ run: run.name }); refresh(); } }, run.name);
    const together = h("input", { type: "checkbox", "aria-label": `show the curves of ${run.name} too`, checked: view.others.has(run.name), onchange: () => { view.others[together.checked ? "add" : "delete"](run.name); place.dataset.names = ""; remember({ with: [...view.others].join("|") }); refresh(); } });
    const bar = run.progress ? h("progress", { value: run.progress, max: 1, "aria-label": `done: ${percent(run.progress)}` }) : "";
    const left = run.state === "running" && run.seconds_left !== null ? `${duration(run.seconds_left)} left` : "";
    return h("tr", { "aria-selected": String(run.name === view.name) }, h("td", {}, choose), h("td", {}, run.family), h("td", {}, run.dataset), h("td", {}, run.state), h("td", {}, bar, " ", left), h("td", {}, `${run.step.toLocaleString("en")} steps in ${duration(run.seconds)}`), h("td", {}, together));
  });
  place.replaceChildren(h("table", { className: "runs" }, h("tr", {}, ["run", "family", "data set", "state", "", "", "curves"].map(title => h("th", {}, title))), rows));
}

async function showRecord(place, view, refresh, page) {
  const names = [view.name, ...[...view.others].filter(name => name !== view.name)];
  const records = await Promise.all(names.map(name => ask(withQuery("run", { name })).catch(error => (name === view.name ? Promise.reject(error) : null))));
  if (page !== shown || names[0] !== view.name) return;
  const found = records[0], all = records.filter(Boolean);
  if (view.parts?.name !== found.name) {
    view.parts = { name: found.name, state: h("p", { id: "run-state" }), head: h("div", { className: "controls" }), problems: h("div"), film: trainingFilm(found.name), charts: h("div", { className: "panels" }), classes: h("div"), output: h("details", { hidden: true }, h("summary", {}, "Output"), h("pre", { className: "log" })) };
    const { state, head, problems, film, charts, classes, output } = view.parts;
    place.replaceChildren(h("section", { "aria-label": "run" }, h("h2", {}, found.name), state, head, problems, film.element, h("h3", {}, "Curves"), charts, classes, output));
  }
  const { state, head, problems, film, charts, classes, output } = view.parts;
  const stop = h("button", { type: "button", id: "stop", onclick: () => { stop.textContent = "stopping; the state is saved first"; stop.disabled = true; counted(ask("stop", { run: found.name })); } }, "stop");
  const resume = h("button", { type: "button", id: "resume", onclick: () => counted(ask("resume", { run: found.name }).then(refresh)) }, "go on");
  const draw = h("button", { type: "button", onclick: () => go({ tab: "draw", model: found.name }) }, "draw with it");
  const buttons = [found.is_here ? stop : [], found.can_go_on ? resume : [], found.saves.length ? draw : []];
  state.textContent = `${found.state}${found.progress ? `, ${percent(found.progress)} done` : ""}${found.state === "running" && found.seconds_left !== null ? `, ${duration(found.seconds_left)} left` : ""}`;
  const shownNow = `${found.is_here} ${found.can_go_on} ${found.saves.length > 0}`;
  if (head.dataset.buttons !== shownNow) {
    head.dataset.buttons = shownNow;
    head.replaceChildren(...buttons.flat());
  }
  problems.replaceChildren(...[found.problem, ...found.problems].filter(Boolean).map(problem => h("p", { className: "warn" }, problem)));
  film.update(found);
  const drawnUntil = all.map(record => `${record.name} ${record.step}`).join();
  if (charts.dataset.until !== drawnUntil) {
    charts.dataset.until = drawnUntil;
    charts.replaceChildren();
    showCurves(charts, all);
  }
  if (classes.dataset.rows !== String(found.classes.length)) {
    classes.dataset.rows = found.classes.length;
    classes.replaceChildren(classShares(found));
  }
  if (found.output) {
    if (found.output.status && output.hidden) output.open = true; // it failed
    output.hidden = false;
    output.querySelector("pre").textContent = found.output.lines.slice(-30).join("\n");
  }
}

// The same sixteen noises at each save of a training, with a slider over its time; of other models, their grids.
function trainingFilm(name) {
  let frames = [];
  const canvas = picture("grid", "samples"), image = h("img", { className: "grid-picture", alt: "samples", hidden: true });
  const note = h("p", { className: "dim" }, "The first samples can be drawn after the first ", term("checkpoint"), ".");
  const range = slider("grid-range", "training ", { min: 0, max: 0, step: 1, value: 0, text: index => (frames[index] ? `${frames[index].step.toLocaleString("en")} steps` : ""), oninput: () => frame() });
  const place = h("div", { hidden: true }, h("p", {}, range.element), canvas, image);
  const kept = new Map(); // images by save
  const frame = newest(async goOn => {
    const { step, model, file } = frames[range.input.valueAsNumber];
    canvas.hidden = !model;
    image.hidden = Boolean(model);
    if (!model) return void (image.src = withQuery("/api/file", { run: name, file }));
    if (!kept.has(model + step)) kept.set(model + step, (await resultOf("draw", { model, num_images: 16, seed: 0 }, goOn, state => showImages(canvas, state.images, 8))).images);
    goOn();
    showImages(canvas, kept.get(model + step), 8);
  }, { last: Promise.resolve() });
  return {
    element: h("div", {}, h("h3", {}, "Samples from the same noise"), note, place),
    update({ saves, grids }) {
      const found = saves.length >= grids.length ? saves : grids; // a training may keep few of its checkpoints
      note.hidden = found.length > 0;
      place.hidden = !found.length;
      if (JSON.stringify(found) === JSON.stringify(frames)) return;
      const isAtEnd = range.input.valueAsNumber === frames.length - 1 || !frames.length;
      frames = found;
      range.input.max = frames.length - 1;
      if (isAtEnd) range.input.value = frames.length - 1;
      range.show();
      if (isAtEnd) frame();
    },
  };
}

const TITLES = { frechet_distance: "Fréchet distance", negative_elbo: "−ELBO, nats", psnr: "PSNR, dB" };

function showCurves(place, records) {
  const add = (title, lines, xTitle, options = {}, key = title) => {
    const chart = h("div"), legend = h("div", { className: "legend" });
    place.append(h("div", { className: "panel" }, h("b", {}, ...term(title, key)), legend, chart));
    if (lines.length > 1) drawLegend(legend, lines);
    drawChart(chart, lines, xTitle, options);
  };
  const several = records.length > 1, named = (record, line) => [several ? record.name : "", line].filter(Boolean).join(": ");
  const evaluated = [...new Set(records.flatMap(record => Object.keys(record.evaluations.values ?? {})))];
  const first = ["frechet_distance", "recall", "precision", "negative_elbo", "accuracy", "psnr"];
  const chosen = [...first.filter(name => evaluated.includes(name)), ...evaluated.filter(name => name.startsWith("loss/"))].slice(0, 6);
  for (const metric of chosen) {
    const lines = records.filter(record => record.evaluations.values?.[metric]).map(record => ({ name: named(record, "held out"), x: record.evaluations.steps, y: record.evaluations.values[metric] }));
    const training = records.filter(record => record.evaluations.values?.[`train_${metric}`]).map(record => ({ name: named(record, "training images"), x: record.evaluations.steps, y: record.evaluations.values[`train_${metric}`] }));
    const real = records.find(record => record.evaluations.real?.[metric] !== undefined);
    const steps = records.flatMap(record => record.evaluations.steps ?? []);
    if (real) lines.push({ name: "real images", x: [Math.min(...steps), Math.max(...steps)], y: [real.evaluations.real[metric], real.evaluations.real[metric]] });
    const together = [...lines, ...training].map((line, index) => ({ ...line, color: COLORS[index % COLORS.length] }));
    add(metric.startsWith("loss/") ? `validation loss of the ${metric.slice(5)}` : (TITLES[metric] ?? metric.replaceAll("_", " ")), together, "optimizer steps", { isWhole: true }, metric);
  }
  const panels = [...new Set(records.flatMap(record => Object.keys(record.curves.panels ?? {})))];
  for (const panel of panels) {
    const lines = records.flatMap(record => Object.entries(record.curves.panels?.[panel] ?? {}).map(([line, y]) => ({ name: named(record, line), x: record.curves.steps, y }))).map((line, index) => ({ ...line, color: COLORS[index % COLORS.length] }));
    add(panel, lines, "optimizer steps", { isLinear: /^(learning rate|mean output)/.test(panel), isWhole: panel === "learning rate" });
  }
  if (!place.children.length) place.append(h("p", { className: "dim" }, "The first values are written after a few steps."));
}

// The share of each class among the samples, by a classifier; a GAN that forgets classes shows here.
function classShares(found) {
  if (!found.classes.length) return h("div");
  const last = found.classes.at(-1), names = Object.keys(last).filter(name => name !== "step"), even = 1 / names.length;
  const rare = names.filter(name => last[name] < even / 4);
  return h("div", {}, h("h3", {}, "Classes among the samples"), bars(names.map(name => [name, last[name] / Math.max(...names.map(each => last[each])), percent(last[name]), last[name] < even / 4])),
    rare.length ? h("p", { className: "warn" }, `Hardly any samples of ${rare.join(", ")}: a sign of `, ...term("mode collapse"), ".") : h("p", { className: "dim" }, "By a classifier, at the newest checkpoint; all classes are there."));
}

// The form of a new training: a recipe, and below it all fields of the command line.
async function trainingForm(place, started) {
  const { recipes, families } = await ask("recipes");
  const about = h("p", { className: "dim", id: "recipe-about" }), fields = h("div"), same = sameAs(), note = h("p", { id: "train-note", role: "alert" });
  const family = h("select", { id: "family", onchange: () => { remember({ family: family.value }); showRecipes(); counted(showFields()); } }, families.map(name => h("option", { value: name }, name)));
  const recipe = h("select", { id: "recipe", onchange: () => { remember({ recipe: recipe.value }); showUsual(); } });
  const name = h("input", { id: "name", type: "text", size: 20, value: "", oninput: () => { remember({ name: name.value }); update(); } });
  const inputs = new Map();
  function showRecipes() {
    recipe.replaceChildren(...recipes.filter(each => each.family === family.value).map(each => h("option", { value: each.name }, `${each.is_first ? "★ " : ""}${each.name}`)), h("option", { value: "" }, "none: set the fields below"));
    update();
  }
  function values() {
    const set = {};
    for (const [field, input] of inputs) {
      const text = input.type === "checkbox" ? input.checked : input.value.trim();
      if (field.kind === "bool" ? text !== Boolean(usualOf(field)) : text !== "") set[field.name] = field.is_list ? text.split(/\s+/) : text;
    }
    return { ...(recipe.value ? { config: recipe.value } : {}), ...set };
  }
  // The value of a field in the chosen recipe, or its default.
  const usualOf = field => recipes.find(each => each.name === recipe.value)?.fields[field.name] ?? field.default;
  // Show the values of another recipe; what was typed stays.
  function showUsual() {
    for (const [field, input] of inputs) {
      const usual = usualOf(field), text = usual === null || usual === undefined ? "" : [usual].flat().join(" ");
      if (input.type === "checkbox") input.checked = Boolean(usual);
      else if (input.tagName === "SELECT") input.options[0].textContent = text ? `(${text})` : "";
      else input.placeholder = text;
    }
    update();
  }
  function update() {
    const chosen = recipes.find(each => each.name === recipe.value);
    about.textContent = chosen ? `${chosen.about} ${chosen.summary}` : "";
    const given = { ...values(), output_dir: `${place.dataset.folder ?? "runs"}/${name.value || "NAME"}` };
    const flags = Object.entries(given).map(([key, value]) => (typeof value === "boolean" ? ` --${value ? "" : "no_"}${key}` : ` --${key} ${[value].flat().map(word).join(" ")}`));
    same.say(`hfgen train ${family.value}${flags.join("")}`, `hfgen.train(${[JSON.stringify(family.value), ...Object.entries(given).map(([key, value]) => `${key}=${inPython(value)}`)].join(", ")})`);
  }
  async function showFields() {
    const wanted = family.value, found = (await ask(withQuery("form", { family: wanted }))).fields;
    if (wanted !== family.value) return; // another one was chosen since
    inputs.clear();
    const groups = new Map();
    for (const field of found) {
      const id = `field-${field.name}`;
      let input;
      if (field.kind === "bool") input = h("input", { type: "checkbox", id, onchange: update });
      else if (field.choices.length) input = h("select", { id, onchange: update }, h("option", { value: "" }), field.choices.map(value => h("option", { value }, value)));
      else input = h("input", { type: "text", id, oninput: update });
      inputs.set(field, input);
      terms[field.name] = field.help;
      if (!groups.has(field.group)) groups.set(field.group, []);
      groups.get(field.group).push(h("div", {}, h("label", { htmlFor: id }, field.name), term("", field.name), input));
    }
    fields.replaceChildren(...[...groups].map(([group, entries]) => h("details", {}, h("summary", {}, group), h("div", { className: "form" }, entries))));
    showUsual();
  }
  const start = h("button", { type: "button", id: "start", onclick: () => counted(begin()) }, "start");
  async function begin() {
    note.textContent = "";
    note.className = "";
    start.disabled = true;
    try {
      const { run } = await ask("train", { family: family.value, name: name.value, fields: values() });
      note.textContent = `${run} is being trained.`;
      await started(run);
      document.getElementById("record").scrollIntoView({ behavior: "smooth" });
    } catch (error) {
      note.textContent = error.message;
      note.className = "warn";
    } finally {
      start.disabled = false;
    }
  }
  const wanted = kept("recipe", null), first = recipes.find(each => each.name === wanted);
  choose(family, "family", first?.family ?? families[0]);
  if (first) family.value = first.family;
  name.value = kept("name", "");
  place.replaceChildren(h("div", { className: "controls" }, h("label", { htmlFor: "family" }, "family ", family), h("label", { htmlFor: "recipe" }, "recipe ", recipe), h("label", { htmlFor: "name" }, "name of the run ", name), start), about, note, fields, same.element);
  showRecipes();
  if (first || wanted === "") recipe.value = wanted;
  await showFields();
}
