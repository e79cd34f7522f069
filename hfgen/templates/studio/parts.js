"use strict";
// Parts of the page that several tabs have.

const main = document.getElementById("main");
const terms = JSON.parse(document.getElementById("terms").textContent);
Object.assign(terms, {
  film: "A diffusion model starts from noise and removes it step by step. Left: the noisy image x_t. Right: the image that the network predicts from it.",
  latents: "The numbers from which a decoder or generator makes an image. Nearby latents give similar images.",
  active: "A latent dimension is active if it says something about the image: its mean varies from image to image. The KL divergence, in nats, is how much it says.",
  checkpoint: "The model and the state of its training, saved from time to time; a training that was stopped goes on from the newest one.",
  "mode collapse": "A GAN that draws only some of the classes, or the same few images again and again.",
});

let helpNumber = 0;
// A text with a button that explains it.
function term(text, key = text) {
  if (!terms[key]) return [text];
  const id = `help-${++helpNumber}`;
  return [text, h("button", { type: "button", className: "help", "aria-label": `what is ${text || key.replaceAll("_", " ")}?`, onclick: event => event.stopPropagation() }, "?"), h("span", { id, popover: "auto" }, terms[key])].map((part, index, all) => {
    if (index === 1) part.popoverTargetElement = all[2];
    return part;
  });
}

// The value that the address has for a control, or its default.
const kept = (key, usual) => state().get(key) ?? usual;
const keptNumber = (key, usual) => (Number.isFinite(Number(state().get(key) ?? NaN)) ? Number(state().get(key)) : usual);

// Choose the option of a list that the address has, or the usual one where the list has no such option.
function choose(select, key, usual) {
  select.value = kept(key, usual);
  if (select.selectedIndex < 0) select.value = usual;
  return select;
}

const duration = total => {
  if (total === null || total === undefined) return "";
  if (total < 90) return `${Math.round(total)} s`;
  return total < 5400 ? `${Math.round(total / 60)} min` : `${(total / 3600).toFixed(1)} h`;
};
const milliseconds = since => Math.round(performance.now() - since);
const percent = share => `${(100 * share).toFixed(1)} %`;
const showImages = (canvas, { data, shape, count }, columns = columnsOf(count)) => paint(canvas, data, shape, columns);

// Commands and Python for the present state: `update(verb, source, fields)` or `say(command, python)` shows them.
const CALLS = { sample: "sample", translate: "edit" };
const word = value => (/^[\w./:@%+=-]+$/.test(value) ? String(value) : `'${String(value).replaceAll("'", "'\\''")}'`);
const inPython = value => (typeof value === "boolean" ? (value ? "True" : "False") : JSON.stringify(value));

// Copy the text of an element; where the browser allows that to no page but those of https and localhost, select it.
async function copyText(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    say("Copied");
  } catch {
    getSelection().selectAllChildren(element);
    say("The browser does not let this page copy; the text is selected, so that Ctrl-C copies it");
  }
}

function sameAs() {
  const command = h("code", { id: "command" }), python = h("code", { id: "python" });
  const copy = from => h("button", { type: "button", onclick: () => copyText(from) }, "copy");
  const rows = [["command", command], ["Python", python]].map(([title, code]) => [h("span", {}, title), code, copy(code)]);
  const found = {
    element: h("div", { className: "same" }, rows),
    say(commandText, pythonText) {
      command.textContent = commandText;
      python.textContent = pythonText;
      rows[0].forEach(part => (part.hidden = !commandText));
    },
    update(verb, source, fields) {
      const given = Object.entries(fields).filter(([, value]) => value !== null && value !== undefined && value.length !== 0);
      const flags = given.map(([name, value]) => (value === true ? ` --${name}` : ` --${name} ${[value].flat().map(word).join(" ")}`));
      found.say(`hfgen ${verb} ${word(source)}${flags.join("")}`, `hfgen.${CALLS[verb]}(${[JSON.stringify(source), ...given.map(([name, value]) => `${name}=${inPython(value)}`)].join(", ")})`);
    },
  };
  return found;
}

// A list of the models that a tab can use, and below it what `show(facts)` makes of the chosen one.
async function withModel(root, uses, about, show) {
  const page = shown;
  const all = await listModels(), models = all.filter(model => !model.problem && (model.use === null || uses.includes(model.use)));
  if (page !== shown) return;
  root.append(...all.filter(model => model.problem).map(model => h("p", { className: "warn" }, `${model.name} cannot be used: ${model.problem}`)));
  if (!models.length) return void root.append(h("p", {}, `${about} Train one on the tab Watch, or start the studio with the name of a model.`));
  const wanted = kept("model", ""), first = models.find(model => model.name === wanted) ?? models[0];
  if (wanted && first.name !== wanted && !all.some(model => model.name === wanted && model.problem))
    root.append(h("p", { className: "dim", id: "instead" }, `${wanted} is not here or cannot do this; this is ${first.name}.`));
  const place = h("div", { id: "panels" }), facts = h("span", { className: "dim", id: "about" });
  const choices = h("select", { id: "model", onchange: () => { history.pushState(null, "", `#${new URLSearchParams({ tab: state().get("tab"), model: choices.value, seed: kept("seed", 0) })}`); counted(open()); } }, models.map(model => h("option", { value: model.name, selected: model === first }, model.name)));
  let opened = 0;
  async function open() {
    const number = ++opened, name = choices.value, listed = models.find(model => model.name === name);
    turnPage();
    const own = shown;
    facts.textContent = [listed.kind, listed.dataset, listed.quality].filter(Boolean).join(" · ");
    place.replaceChildren(h("p", { className: "dim" }, `Loading ${name}…`));
    try {
      const found = await factsOf(name);
      if (number === opened && own === shown) {
        place.replaceChildren(...(await show(found, models)).flat());
        say("");
      }
    } catch (error) {
      if (number === opened) place.replaceChildren(h("p", { className: "warn" }, `${name} cannot be used: ${error.message}`));
    }
  }
  root.append(h("div", { className: "chooser" }, h("label", { htmlFor: "model" }, "model ", choices), facts), place);
  remember({ model: first.name });
  await counted(open());
}

// Count a promise among the jobs of the page.
async function tracked(promise) {
  document.body.dataset.jobs = ++waitingJobs;
  try {
    return await promise;
  } finally {
    document.body.dataset.jobs = --waitingJobs;
  }
}

// Likewise, and say what went wrong.
const counted = promise => tracked(promise).then(works, explain);

// Bars with their values: [[name, share, text, isWeak], …].
const bars = rows => h("div", { className: "bars" }, rows.flatMap(([name, share, text, isWeak]) => {
  const bar = h("i", { className: isWeak ? "weak" : "" });
  bar.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return [h("span", {}, name), bar, h("span", {}, text)];
}));

// Several models on the same noise, one after the other, at their real speed.
function racePanel(models, title, about, count, isChosen) {
  const chosen = kept("race", "").split("|").filter(Boolean);
  const entries = models.map(model => {
    const canvas = picture(`of-${model.name}`, `images of ${model.name}`), time = h("output", {}, "–");
    const check = h("input", { type: "checkbox", id: `in-${model.name}`, checked: chosen.length ? chosen.includes(model.name) : isChosen(model) });
    return { model, canvas, time, check, element: h("figure", { className: "entry" }, h("label", { htmlFor: check.id }, check, ` ${model.name}`), canvas, h("figcaption", {}, time, h("br"), [model.dataset, model.quality].filter(Boolean).join(" · "))) };
  });
  const seed = seedField("race-seed", () => {});
  seed.value = keptNumber("race_seed", 0);
  const run = async ({ model, canvas, time }, goOn) => {
    time.textContent = "loading";
    const facts = await factsOf(model.name);
    goOn();
    const since = performance.now();
    const last = await resultOf("draw", { model: model.name, num_images: count, seed: seed.value }, goOn, state => {
      showImages(canvas, state.images);
      if (facts.use === "denoise") time.textContent = `step ${state.step}, ${seconds(since)}`;
    });
    showImages(canvas, last.images);
    time.textContent = `${count} images in ${seconds(since)}`;
  };
  const start = newest(async goOn => {
    const racing = entries.filter(entry => entry.check.checked);
    remember({ race_seed: seed.value, race: racing.map(entry => entry.model.name).join("|") });
    for (const entry of entries) entry.time.textContent = racing.includes(entry) ? "waits" : "–";
    for (const entry of racing) {
      try {
        await run(entry, goOn);
      } catch (error) {
        if (!(error instanceof Said)) throw error;
        entry.time.textContent = error.message;
      }
    }
  });
  return h("section", { "aria-label": title }, h("h2", {}, title), h("p", {}, about),
    h("div", { className: "controls" }, seed.element, h("button", { type: "button", id: "race", onclick: start }, "start the race")),
    h("div", { className: "entries" }, entries.map(entry => entry.element)));
}
