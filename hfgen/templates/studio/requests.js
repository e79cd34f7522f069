"use strict";
// Requests to the endpoints of the studio.

// Send a request, and say so if nobody answers.
async function send(path, options) {
  try {
    return await fetch(`/api/${path}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Said("The studio does not answer. If it was ended, its trainings are saved; start it again, and reload this page.");
  }
}

// Ask for JSON, with a body by POST.
async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await send(path, options);
  const answer = await response.json();
  if (!response.ok) throw new Said(answer.error);
  return answer;
}

const withQuery = (path, values) => `${path}?${new URLSearchParams(values)}`;

// Images of an answer: {shape: [C, H, W], count, data}.
function unpacked({ shape: [count, ...shape], pixels }) {
  const data = Float32Array.from(atob(pixels), character => character.charCodeAt(0) / 127.5 - 1);
  return { shape, count, data };
}

// The states of a computation, as the server computes them. When the caller stops to iterate, so does the server.
async function* stepsOf(name, body) {
  const stop = new AbortController();
  try {
    const response = await send(name, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, format: "stream" }), signal: stop.signal,
    });
    if (!response.ok) throw new Said((await response.json()).error);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("the studio did not finish its answer");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const state = JSON.parse(line);
        if (state.error) throw new Said(state.error);
        if (state.is_done) return;
        for (const key of ["images", "noised"]) if (state[key]) state[key] = unpacked(state[key]);
        yield state;
      }
    }
  } finally {
    stop.abort();
  }
}

// The last state of a computation; `goOn` is called at each, and gives it up by throwing.
async function resultOf(name, body, goOn = () => {}, onState = () => {}) {
  let last = null;
  for await (const state of stepsOf(name, body)) {
    goOn();
    onState(state);
    last = state;
  }
  goOn();
  return last;
}

// What the page must know of a model, asked once until the models are listed anew.
const knownFacts = new Map();
async function factsOf(name) {
  if (!knownFacts.has(name)) knownFacts.set(name, await ask(withQuery("model", { name })));
  return knownFacts.get(name);
}

// A model that draws images such as another takes: that model itself, else one of its data set, else of its size.
async function modelFor(facts) {
  if (facts.use !== "translate") return facts;
  let found = null;
  for (const { name } of (await ask("models")).models.filter(model => ["denoise", "few_steps", "decode"].includes(model.use))) {
    const other = await factsOf(name);
    if (String(other.image_shape) !== String(facts.image_shape)) continue;
    if (other.dataset === facts.dataset) return other;
    found ??= other;
  }
  return found;
}

async function listModels() {
  knownFacts.clear();
  return (await ask("models")).models;
}

// A picture of a canvas in base64, as endpoints take it; image: Float32Array (C, H, W).
function asFile(image, [channels, height, width]) {
  const canvas = h("canvas", { width, height }), context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = Math.round((image[(channels === 1 ? 0 : c) * width * height + i] / 2 + 0.5) * 255);
    pixels.data[4 * i + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  return canvas.toDataURL();
}

// Read an uploaded picture by the server, which checks it as it does other images.
async function uploadedPicture(file, model) {
  const text = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Said(`${file.name} could not be read`));
    reader.readAsDataURL(file);
  });
  try {
    return unpacked((await ask("picture", { model, image: text || "data:," })).images);
  } catch (error) {
    throw new Said(`${file.name}: ${error.message}`);
  }
}
