// The page of the server: pictures in, answers out, and a slider that makes the picture worse.

const SIDE = 640; // pixels that a picture is shown and made worse at
const SENT = ["image/jpeg", "image/png", "image/webp"];
const MOST = 10 * 1024 * 1024;
const DEBOUNCE = 120; // ms
const LEVELS = { make: "the make", model: "make and model", class: "make, model and year" };
const find = (selector, root = document) => root.querySelector(selector);

let token = null; // for this page's life only
let tokenGiven = null; // resolves once there is one

// --- the server -------------------------------------------------------------------------------------------------

async function call(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const headers = token ? { authorization: `Bearer ${token}` } : {};
    const reply = await fetch(path, { ...options, headers });
    if (reply.status === 401) {
      await askForToken();
    } else if (reply.status === 503 && attempt < 8) {
      const seconds = Number(reply.headers.get("retry-after")) || 1;
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
      options.signal?.throwIfAborted();
    } else {
      return reply;
    }
  }
}

function askForToken() {
  const form = find("#token");
  tokenGiven ??= new Promise((resolve) => {
    form.hidden = false;
    find("#secret").value = "";
    find("#secret").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      token = find("#secret").value.trim();
      form.hidden = true;
      tokenGiven = null;
      resolve();
    };
  });
  return tokenGiven;
}

function send(path, blob, signal) {
  const body = new FormData();
  body.append("image", blob, "picture");
  return call(path, { method: "POST", body, signal });
}

async function recognise(blob, signal) {
  const reply = await send("v1/recognize?top=5", blob, signal);
  const document = await reply.json();
  if (!reply.ok) throw new Error(document.error.message);
  find("#model").textContent = `Model ${document.model.name}, version ${document.model.version}.`;
  return [document.results[0], document.model.restores];
}

// --- making it worse: functions of ImageData and of how much, in 0..1 --------------------------------------------

function gaussian(count, seed) {
  const values = new Float32Array(count);
  const random = () => {
    seed = (seed + 0x6d2b79f5) | 0; // mulberry32
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  for (let k = 0; k < count; k += 2) {
    const length = Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    values[k] = length * Math.cos(angle);
    if (k + 1 < count) values[k + 1] = length * Math.sin(angle);
  }
  return values;
}

const grains = new Map(); // by size: the same grain at every strength, so that the slider moves smoothly

function noise(image, much) {
  const count = image.width * image.height * 3;
  if (!grains.has(count)) grains.set(count, gaussian(count, 7));
  const grain = grains.get(count);
  const sigma = 0.6 * 255 * much;
  for (let pixel = 0, k = 0; k < count; pixel += 4) {
    for (let channel = 0; channel < 3; channel++, k++) image.data[pixel + channel] += sigma * grain[k];
  }
  return image;
}

function boxBlur(from, to, lines, length, line, step, radius) {
  const width = 2 * radius + 1;
  for (let l = 0; l < lines; l++) {
    for (let channel = 0; channel < 3; channel++) {
      const start = l * line + channel;
      const at = (k) => from[start + Math.min(Math.max(k, 0), length - 1) * step];
      let sum = 0;
      for (let k = -radius; k <= radius; k++) sum += at(k);
      for (let k = 0; k < length; k++) {
        to[start + k * step] = sum / width;
        sum += at(k + radius + 1) - at(k - radius);
      }
    }
  }
}

function blur(image, much) {
  const { width, height } = image;
  const radius = Math.round((much * Math.max(width, height)) / 45);
  let from = Float32Array.from(image.data);
  let to = Float32Array.from(image.data);
  for (let pass = 0; radius > 0 && pass < 3; pass++) { // three boxes are nearly a Gaussian
    boxBlur(from, to, height, width, 4 * width, 4, radius);
    [from, to] = [to, from];
    boxBlur(from, to, width, height, 4, 4 * width, radius);
    [from, to] = [to, from];
  }
  image.data.set(from);
  return image;
}

async function throughCanvas(image, width, height, quality) {
  const whole = new OffscreenCanvas(image.width, image.height);
  whole.getContext("2d").putImageData(image, 0, 0);
  const small = new OffscreenCanvas(width, height);
  const draw = small.getContext("2d");
  draw.imageSmoothingQuality = "high";
  draw.drawImage(whole, 0, 0, width, height);
  const picture = quality === null
    ? small
    : await createImageBitmap(await small.convertToBlob({ type: "image/jpeg", quality }));
  const again = whole.getContext("2d");
  again.drawImage(picture, 0, 0, image.width, image.height);
  return again.getImageData(0, 0, image.width, image.height);
}

const jpeg = (image, much) => throughCanvas(image, image.width, image.height, 0.5 * (1 - much) ** 2);

function fewer(image, much) {
  const share = 2 ** (-5.5 * much);
  const side = (length) => Math.max(4, Math.round(length * share));
  return throughCanvas(image, side(image.width), side(image.height), null);
}

const KINDS = { Noise: noise, Blur: blur, JPEG: jpeg, "Fewer pixels": fewer };

// --- words ------------------------------------------------------------------------------------------------------

const percent = (share) => `${(100 * share).toFixed(share > 0.9995 ? 0 : 1)} %`;
const nameOf = (car) => [car.make, car.model, car.year].filter((part) => part !== "" && part !== null).join(" ");

const DOUBTS = {
  unknown_vehicle: ["Unknown vehicle", "This looks like no vehicle that it has learned; the name is the nearest."],
  not_a_vehicle: ["Not a vehicle", "This looks unlike any vehicle; the name is the nearest."],
  too_small: ["Too small", "The picture has too few pixels to trust the answer."],
  low_quality: ["Bad picture", "The picture is too bad to tell whether this vehicle is known."],
};

function judge(answer) {
  const first = answer.alternatives[0];
  if (answer.reason in DOUBTS) return ["doubt", ...DOUBTS[answer.reason]];
  if (answer.level === "") {
    return ["doubt", "Unsure", "Nothing about this vehicle is sure enough to be said, not even its make."];
  }
  const finest = answer.levels.length === 0 || answer.level === "class" || answer.year !== null;
  if (!finest && first && nameOf(first) !== nameOf(answer)) {
    return ["doubt", `Sure of ${LEVELS[answer.level] ?? answer.level} alone`,
      `What is finer is not sure enough: the likeliest is ${nameOf(first)}, at ${percent(first.confidence)}.`];
  }
  if (answer.confidence < 0.5) return ["doubt", "A guess", "No vehicle that it knows is more likely than not."];
  return ["sound", answer.levels.length ? `Sure of ${LEVELS[answer.level] ?? answer.level}` : "Recognised", ""];
}

function bar(share) {
  const outer = document.createElement("div");
  outer.className = "bar";
  outer.append(document.createElement("i"));
  outer.style.setProperty("--sure", share);
  return outer;
}

// --- a picture and its answer -----------------------------------------------------------------------------------

class Card {
  constructor(file) {
    this.file = file;
    this.element = find("#card").content.firstElementChild.cloneNode(true);
    this.canvas = find("canvas", this.element);
    this.answer = find(".answer", this.element);
    this.range = find("input[type=range]", this.element);
    const name = `kind-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    for (const kind of Object.keys(KINDS)) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name, value: kind });
      input.checked = kind === "Noise";
      label.append(input, kind);
      find(".kinds", this.element).append(label);
    }
    find(".kinds", this.element).onchange = () => this.changed();
    this.range.oninput = () => this.changed();
    find(".close", this.element).onclick = () => this.remove();
    this.answer.classList.add("waiting");
    find(".state", this.element).textContent = "Looking";
  }

  async open() {
    try {
      const bitmap = await createImageBitmap(this.file);
      const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
      this.canvas.width = Math.max(1, Math.round(bitmap.width * scale));
      this.canvas.height = Math.max(1, Math.round(bitmap.height * scale));
      this.draw = this.canvas.getContext("2d", { willReadFrequently: true });
      this.draw.imageSmoothingQuality = "high";
      this.draw.drawImage(bitmap, 0, 0, this.canvas.width, this.canvas.height);
      this.clean = this.draw.getImageData(0, 0, this.canvas.width, this.canvas.height);
    } catch { // no picture for this browser; the server says what it thinks of it
      find("figure", this.element).hidden = true;
    }
    await this.ask(() => this.original());
  }

  original() {
    if (!this.clean || (SENT.includes(this.file.type) && this.file.size <= MOST)) return this.file;
    return this.drawn();
  }

  drawn() {
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }

  changed() {
    const much = this.range.valueAsNumber / 100;
    const kind = find(".kinds :checked", this.element).value;
    find("output", this.element).textContent = much ? `${this.range.value} %` : "as it is";
    this.range.setAttribute("aria-valuetext", much ? `${kind}, ${this.range.value} percent` : "as it is");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(async (stale) => {
      const copy = new ImageData(new Uint8ClampedArray(this.clean.data), this.canvas.width);
      const worse = much ? await KINDS[kind](copy, much) : copy;
      if (stale()) return null;
      this.draw.putImageData(worse, 0, 0);
      return much ? this.drawn() : this.original();
    }), DEBOUNCE);
  }

  async ask(picture) {
    this.asking?.abort();
    const asking = this.asking = new AbortController();
    this.answer.setAttribute("aria-busy", "true");
    try {
      const blob = await picture(() => asking.signal.aborted);
      if (asking.signal.aborted) return;
      const [answer, restores] = await recognise(blob, asking.signal);
      this.show(answer);
      if (restores && this.clean) this.restore(blob, asking.signal);
    } catch (error) {
      if (asking.signal.aborted) return;
      this.fail(error instanceof TypeError ? "The server does not answer." : error.message);
    }
    this.answer.setAttribute("aria-busy", "false");
  }

  async restore(blob, signal) {
    const pane = find(".restored", this.element);
    const picture = find("img", pane);
    try {
      const reply = await send("v1/restore", blob, signal);
      if (!reply.ok) throw new Error();
      const restored = await reply.blob();
      if (signal.aborted) return;
      URL.revokeObjectURL(picture.src);
      picture.src = URL.createObjectURL(restored);
    } catch {
      if (signal.aborted) return;
      picture.removeAttribute("src");
    }
    pane.hidden = !picture.src;
    this.element.classList.toggle("twice", !pane.hidden);
  }

  fail(message) {
    this.answer.className = "answer fail";
    find(".state", this.element).textContent = "No answer";
    find("h2", this.element).textContent = "";
    find(".why", this.element).textContent = message[0].toUpperCase() + message.slice(1);
    find("#said").textContent = `No answer: ${message}`;
  }

  show(answer) {
    const [state, told, why] = judge(answer);
    const much = this.range.valueAsNumber;
    this.answer.className = `answer ${state}${nameOf(answer) ? "" : " silent"}`;
    if (!much) this.first = answer;
    find(".state", this.element).textContent = told;
    const title = find("h2", this.element);
    title.textContent = [answer.make, answer.model].filter(Boolean).join(" ") || "I cannot tell";
    if (answer.year !== null) {
      const year = document.createElement("span");
      year.textContent = ` ${answer.year}`;
      title.append(year);
    }
    find(".sure b", this.element).textContent = percent(answer.confidence);
    find(".answer > .bar", this.element).style.setProperty("--sure", answer.confidence);
    const [now, then] = [nameOf(answer), this.first && nameOf(this.first)];
    const before = !much || !then ? ""
      : now === then ? `The answer holds; as it is, the picture makes it ${percent(this.first.confidence)} confident.`
        : `The answer has changed: as it is, the picture gives ${then}.`;
    find(".why", this.element).textContent = [before, why].filter(Boolean).join(" ");
    find("h3", this.element).textContent = now ? "It could also be" : "The likeliest";
    find(".levels", this.element).replaceChildren(...answer.levels.map(({ level, value, confidence }) => {
      const row = document.createElement("div");
      const [name, said, share] = ["dt", "dd", "span"].map((tag) => document.createElement(tag));
      name.textContent = level === "class" ? "vehicle" : level;
      said.textContent = value;
      if (confidence !== null) {
        share.textContent = ` ${percent(confidence)}`;
        said.append(share);
      }
      row.append(name, said);
      return row;
    }));
    find(".others", this.element).replaceChildren(...answer.alternatives.map((car) => {
      const row = document.createElement("li");
      const [name, number] = ["span", "span"].map((tag) => document.createElement(tag));
      name.textContent = nameOf(car);
      number.textContent = percent(car.confidence);
      number.className = "number";
      row.append(name, number, bar(car.confidence));
      return row;
    }));
    this.canvas.setAttribute("aria-label", `Picture of ${nameOf(answer) || "a vehicle"}`);
    find("#said").textContent = `${nameOf(answer) || "Unsure"}, ${percent(answer.confidence)}. ${told}.`;
  }

  remove() {
    clearTimeout(this.timer);
    this.asking?.abort();
    URL.revokeObjectURL(find(".restored img", this.element).src);
    const next = this.element.nextElementSibling ?? this.element.previousElementSibling;
    this.element.remove();
    (next ? find(".close", next) : find("#files")).focus();
    if (!next) find("#drop").classList.remove("used");
  }
}

async function add(files) {
  const cards = [...files].map((file) => new Card(file));
  if (!cards.length) return;
  find("#drop").classList.add("used");
  find("#pictures").prepend(...cards.map((card) => card.element));
  const waiting = [...cards];
  await Promise.all(Array.from({ length: 4 }, async () => { // four at a time
    for (let card; (card = waiting.shift());) await card.open();
  }));
}

// --- the ways in ------------------------------------------------------------------------------------------------

const drop = find("#drop");
let inside = 0;
addEventListener("dragenter", (event) => { event.preventDefault(); inside++; drop.classList.add("over"); });
addEventListener("dragleave", () => { if (--inside <= 0) { inside = 0; drop.classList.remove("over"); } });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  drop.classList.remove("over");
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => add([...event.clipboardData.files].filter((file) => file.type.startsWith("image/"))));
find("#files").onchange = (event) => { add(event.target.files); event.target.value = ""; };

const booth = find("#booth");
const video = find("video", booth);
find("#camera").hidden = !navigator.mediaDevices?.getUserMedia;
find("#camera").onclick = async () => {
  const problem = find(".problem", booth);
  problem.hidden = true;
  find("#shoot").disabled = true;
  booth.showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: 1280 } });
    if (!booth.open) return stream.getTracks().forEach((track) => track.stop());
    video.srcObject = stream;
    find("#shoot").disabled = false;
  } catch {
    problem.textContent = "There is no camera that this page may use.";
    problem.hidden = false;
  }
};
find("#shoot").onclick = () => {
  const still = document.createElement("canvas");
  [still.width, still.height] = [video.videoWidth, video.videoHeight];
  still.getContext("2d").drawImage(video, 0, 0);
  still.toBlob((blob) => add([blob]), "image/jpeg", 0.95);
  booth.close();
};
find("#leave").onclick = () => booth.close();
booth.onclose = () => {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
};
