"use strict";
// One photo, its segments, and masks that a person corrects. Masks are kept at the size that is shown.

const LARGEST_SIDE = 1600; // of the picture that is shown, in pixels
const LOWEST = 0.2; // score from which segments are asked for, so that the slider needs no new request
const STEP = 10; // pixels of an arrow key

const get = (id) => document.getElementById(id);
const canvas = get("canvas"), context = canvas.getContext("2d");
let service = null; // what /health says
let photo = null; // {file, bitmap, width, height}
let segments = []; // {label, label_id, score, area, refined, part}
let history = []; // earlier lists of segments
const hidden = new Set(); // classes
let near = null; // the segment under the pointer, or in focus
let box = null; // [x0, y0, x1, y1] that is drawn
let paint = null; // canvas of what is painted
let start = null; // where a pointer went down

function say(text, isError = false) {
  get("status").textContent = text;
  get("status").className = isError ? "error" : "";
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The service does not answer: is it still running?");
  }
  if (!answer.ok) {
    let detail = `The service answered ${answer.status}`;
    try {
      detail = (await answer.json()).detail;
    } catch { /* not JSON */ }
    throw new Error(`${detail[0].toUpperCase()}${detail.slice(1)}.`);
  }
  return answer;
}

// Masks

function countsOf(text) { // COCO's compressed run lengths
  const counts = [];
  for (let place = 0; place < text.length;) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(place++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

function samples(size, shown) { // for each pixel that is shown, the one of the image
  return Array.from({ length: shown }, (_, i) => Math.min(size - 1, Math.floor(((i + 0.5) * size) / shown)));
}

function partOf(row) { // a segment's mask within its box, at the size that is shown
  const [height, width] = row.segmentation.size;
  const [x, y, w, h] = row.bbox;
  const xs = samples(width, canvas.width), ys = samples(height, canvas.height);
  const left = xs.findIndex((value) => value >= x), top = ys.findIndex((value) => value >= y);
  const right = xs.filter((value) => value < x + w).length, bottom = ys.filter((value) => value < y + h).length;
  const part = { left, top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
  part.bits = new Uint8Array(part.width * part.height);
  if (left < 0 || top < 0 || !part.bits.length) return { ...part, left: 0, top: 0, width: 0, height: 0 };
  const columnOf = new Int32Array(width).fill(-1), firstRow = new Int32Array(height + 1);
  for (let i = 0; i < part.width; i++) columnOf[xs[left + i]] = i;
  for (let value = 0, i = 0; value <= height; value++) {
    while (i < part.height && ys[top + i] < value) i++;
    firstRow[value] = i;
  }
  let place = 0;
  countsOf(row.segmentation.counts).forEach((count, index) => {
    const stop = place + count;
    for (; index % 2 && place < stop;) {
      const column = Math.floor(place / height), end = Math.min(stop, (column + 1) * height);
      const shown = columnOf[column];
      if (shown >= 0) {
        const last = firstRow[end - column * height];
        for (let i = firstRow[place - column * height]; i < last; i++) part.bits[i * part.width + shown] = 1;
      }
      place = end;
    }
    place = stop;
  });
  return part;
}

function layerOf(part, color) { // the mask as a picture with a contour
  const layer = document.createElement("canvas");
  layer.width = Math.max(1, part.width);
  layer.height = Math.max(1, part.height);
  const pixels = new ImageData(layer.width, layer.height), { bits, width, height } = part;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (!bits[i]) continue;
      const edge = !(x && y && x < width - 1 && y < height - 1 && bits[i - 1] && bits[i + 1] && bits[i - width] && bits[i + width]);
      pixels.data.set([...color, edge ? 255 : 120], 4 * i);
    }
  }
  layer.getContext("2d").putImageData(pixels, 0, 0);
  return layer;
}

function segmentOf(row, refined) {
  const part = partOf(row);
  return { ...row, refined, part, layer: layerOf(part, service.colors[row.label_id]) };
}

function rleOf(picture) { // what is painted, as run lengths by columns
  const { width, height } = picture;
  const alpha = picture.getContext("2d").getImageData(0, 0, width, height).data;
  const counts = [];
  let value = 0, run = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const bit = alpha[4 * (y * width + x) + 3] > 127 ? 1 : 0;
      if (bit !== value) {
        counts.push(run);
        run = 0;
        value = bit;
      }
      run++;
    }
  }
  counts.push(run);
  return { size: [height, width], counts };
}

// What is shown

function isVisible(segment) {
  const enough = segment.refined || segment.score === undefined || segment.score >= Number(get("threshold").value);
  return enough && !hidden.has(segment.label);
}

function describe(segment) {
  const score = segment.score === undefined ? "" : ` ${segment.score.toFixed(2)}`;
  return `${segment.label}${score}, ${segment.area.toLocaleString("en")} pixels${segment.refined ? ", refined" : ""}`;
}

function draw() {
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(photo.bitmap, 0, 0, canvas.width, canvas.height);
  const shown = segments.filter(isVisible);
  for (const segment of [...shown].reverse()) {
    context.globalAlpha = near && near !== segment ? 0.45 : 1;
    context.drawImage(segment.layer, segment.part.left, segment.part.top);
  }
  context.globalAlpha = 1;
  if (paint) context.drawImage(paint, 0, 0);
  if (box) {
    context.lineWidth = Math.max(2, canvas.width / 400);
    for (const [color, dash] of [["#000", []], ["#fff", [8, 8]]]) {
      context.strokeStyle = color;
      context.setLineDash(dash);
      context.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
    }
    context.setLineDash([]);
  }
  canvas.dataset.shown = shown.length;
}

function colored(element, label_id, text) {
  const mark = document.createElement("i");
  mark.className = "color";
  mark.style.background = `rgb(${service.colors[label_id].join(" ")})`;
  element.append(mark, text);
  return element;
}

function list() { // classes and segments beside the picture
  const names = [...new Map(segments.map((segment) => [segment.label, segment.label_id]))];
  get("classes").replaceChildren(...names.map(([name, id]) => {
    const button = colored(document.createElement("button"), id, name);
    button.type = "button";
    button.setAttribute("aria-pressed", String(!hidden.has(name)));
    button.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      rows();
    });
    return button;
  }));
  rows();
}

function rows() {
  get("value").textContent = Number(get("threshold").value).toFixed(2);
  get("segments").replaceChildren(...segments.filter(isVisible).map((segment) => {
    const item = colored(document.createElement("li"), segment.label_id, describe(segment));
    item.tabIndex = 0;
    for (const [event, value] of [["mouseenter", segment], ["focus", segment], ["mouseleave", null], ["blur", null]]) {
      item.addEventListener(event, () => { near = value; draw(); });
    }
    segment.item = item;
    return item;
  }));
  get("undo").disabled = !history.length;
  draw();
}

function point(event) { // of the pointer, in pixels that are shown
  const place = canvas.getBoundingClientRect();
  const scale = Math.min(place.width / canvas.width, place.height / canvas.height);
  return [(event.clientX - place.left) / scale, (event.clientY - place.top) / scale];
}

function segmentAt([x, y]) {
  return segments.find(({ part, ...segment }) => {
    const column = Math.floor(x) - part.left, row = Math.floor(y) - part.top;
    const inside = column >= 0 && row >= 0 && column < part.width && row < part.height;
    return inside && part.bits[row * part.width + column] && isVisible(segment);
  }) ?? null;
}

function hover(event) {
  const found = segmentAt(point(event));
  get("tip").hidden = !found;
  if (found) {
    const place = get("frame").getBoundingClientRect();
    get("tip").textContent = describe(found);
    const room = place.width - get("tip").offsetWidth;
    get("tip").style.left = `${Math.max(0, Math.min(room, event.clientX - place.left + 14))}px`;
    get("tip").style.top = `${event.clientY - place.top + 14}px`;
  }
  if (found === near) return;
  near?.item?.classList.remove("near");
  near = found;
  near?.item?.classList.add("near");
  draw();
}

// A photo

async function open(file, threshold = null) {
  if (!file) return;
  try {
    service ??= await (await ask("health")).json();
    let bitmap;
    try {
      bitmap = await createImageBitmap(file); // turned as its EXIF data say
    } catch {
      bitmap = null; // a format that the browser does not show: the service tells what it is
    }
    say("Looking for segments ...");
    const panoptic = service.task === "panoptic"; // there a lower score takes pixels from other segments
    const chosen = threshold ?? service.threshold, lowest = panoptic ? chosen : Math.min(LOWEST, chosen);
    const answer = await ask(`predict?threshold=${lowest}`, { method: "POST", body: file });
    const result = await answer.json();
    if (!bitmap) {
      const picture = await ask("predict?format=overlay&threshold=1", { method: "POST", body: file });
      bitmap = await createImageBitmap(await picture.blob());
    }
    photo = { file, bitmap, width: result.width, height: result.height };
    const scale = Math.min(1, LARGEST_SIDE / Math.max(result.width, result.height));
    canvas.width = Math.max(1, Math.round(result.width * scale));
    canvas.height = Math.max(1, Math.round(result.height * scale));
    get("threshold").min = panoptic ? 0 : lowest;
    get("threshold").value = chosen;
    get("threshold").parentElement.hidden = result.task === "semantic";
    segments = result.segments.map((row) => segmentOf(row, false));
    history = [];
    near = box = paint = null;
    hidden.clear();
    get("drop").hidden = true;
    get("frame").hidden = get("tools").hidden = false;
    choose("look");
    list();
    const number = segments.filter(isVisible).length;
    say(`${number} segment${number === 1 ? "" : "s"} in ${result.width} x ${result.height} pixels.`);
  } catch (error) {
    say(error.message, true);
  }
}

// Corrections

function mode() {
  return document.querySelector("input[name=mode]:checked").value;
}

function choose(value) {
  document.querySelector(`input[name=mode][value=${value}]`).checked = true;
  box = paint = start = null;
  canvas.classList.toggle("draws", value !== "look");
  get("send").disabled = true;
  const help = { look: "", box: "Drag a box. With the keyboard: focus the picture; arrow keys move the upper left corner, with Shift the lower right one; Enter refines.",
    scribble: "Paint over the object roughly." };
  get("note").textContent = [help[value], value === "look" ? "" : service.refine_note].filter(Boolean).join(" ");
  if (photo) draw();
}

function paintTo(from, to) {
  if (!paint) {
    paint = document.createElement("canvas");
    paint.width = canvas.width;
    paint.height = canvas.height;
  }
  const brush = paint.getContext("2d");
  brush.lineCap = "round";
  brush.lineWidth = Math.max(8, canvas.width / 30);
  brush.strokeStyle = "#ffd400";
  brush.beginPath();
  brush.moveTo(...from);
  brush.lineTo(...to);
  brush.stroke();
}

function move(event) {
  if (mode() === "look" || !start) return hover(event);
  const place = point(event).map((value, axis) => Math.max(0, Math.min(axis ? canvas.height : canvas.width, value)));
  if (mode() === "box") {
    box = [Math.min(start[0], place[0]), Math.min(start[1], place[1]), Math.max(start[0], place[0]), Math.max(start[1], place[1])];
    get("send").disabled = box[2] - box[0] < 2 || box[3] - box[1] < 2;
  } else {
    paintTo(start, place);
    start = place;
    get("send").disabled = false;
  }
  draw();
}

function key(event) {
  const sides = { ArrowLeft: [0, -STEP], ArrowRight: [0, STEP], ArrowUp: [1, -STEP], ArrowDown: [1, STEP] };
  if (mode() !== "box") return;
  if (event.key === "Enter" && box) return send();
  if (!(event.key in sides)) return;
  event.preventDefault();
  const { width, height } = canvas;
  box ??= [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4];
  const [axis, step] = sides[event.key], side = axis + (event.shiftKey ? 2 : 0), largest = axis ? height : width;
  box[side] = Math.max(0, Math.min(largest, box[side] + step));
  get("send").disabled = box[2] - box[0] < 2 || box[3] - box[1] < 2;
  draw();
}

async function send() {
  const scale = [photo.width / canvas.width, photo.height / canvas.height];
  const prompts = box ? { boxes: [box.map((value, i) => value * scale[i % 2])] } : { masks: [rleOf(paint)] };
  const form = new FormData();
  form.append("image", photo.file);
  form.append("prompts", JSON.stringify(prompts));
  get("send").disabled = true;
  say("Refining ...");
  try {
    const result = await (await ask("refine", { method: "POST", body: form })).json();
    const found = result.segments.filter((row) => row.area).map((row) => segmentOf(row, true));
    if (!found.length) throw new Error("The model finds nothing there.");
    history.push(segments);
    segments = [...found, ...segments];
    choose(mode());
    list();
    say(`Added: ${describe(found[0])}.`);
  } catch (error) {
    get("send").disabled = false;
    say(error.message, true);
  }
}

async function download(button) {
  const query = new URLSearchParams({ format: button.dataset.form });
  if (!get("threshold").parentElement.hidden) query.set("threshold", get("threshold").value);
  if (hidden.size) {
    const shown = new Set(segments.map((segment) => segment.label).filter((label) => !hidden.has(label)));
    if (!shown.size) return say("All classes are hidden, so there is nothing to save.", true);
    for (const label of shown) query.append("label", label);
  }
  try {
    const form = new FormData(), added = segments.filter((segment) => segment.refined && !hidden.has(segment.label));
    form.append("image", photo.file);
    if (added.length) {
      const [masks, labels] = [added.map((row) => row.segmentation), added.map((row) => row.label)];
      form.append("added", JSON.stringify({ masks, labels }));
    }
    const answer = await ask(`predict?${query}`, { method: "POST", body: form });
    const link = document.createElement("a"), name = photo.file.name || "photo";
    let content = await answer.blob();
    if (button.dataset.form === "labelme") { // which finds the image by its name
      content = new Blob([JSON.stringify({ ...JSON.parse(await content.text()), imagePath: name })]);
    }
    link.href = URL.createObjectURL(content);
    link.download = name.replace(/\.[^.]*$/, "") + button.dataset.end;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    say(`${link.download} is saved.`);
  } catch (error) {
    say(error.message, true);
  }
}

// Events

get("file").addEventListener("change", (event) => {
  open(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
get("another").addEventListener("click", () => get("file").click());
get("threshold").addEventListener("input", rows);
get("threshold").addEventListener("change", (event) => {
  if (service.task === "panoptic") open(photo.file, Number(event.target.value));
});
get("send").addEventListener("click", send);
get("undo").addEventListener("click", () => { segments = history.pop(); list(); say("Undone."); });
for (const button of document.querySelectorAll("#downloads button")) button.addEventListener("click", () => download(button));
for (const input of document.querySelectorAll("input[name=mode]")) input.addEventListener("change", () => choose(input.value));
canvas.addEventListener("pointerdown", (event) => {
  if (mode() === "look") return;
  canvas.setPointerCapture(event.pointerId);
  start = point(event);
  move(event);
});
canvas.addEventListener("pointermove", move);
canvas.addEventListener("pointerup", () => { start = null; });
canvas.addEventListener("pointerleave", () => { get("tip").hidden = true; });
canvas.addEventListener("keydown", key);
document.addEventListener("paste", (event) => open([...event.clipboardData.files][0]));
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    get("drop").classList.toggle("over", over);
    if (name === "drop") open(event.dataTransfer.files[0]);
  });
}
ask("health").then((answer) => answer.json()).then((told) => {
  service = told;
  get("model").textContent = `${told.task} segmentation, ${told.labels.length === 1 ? "1 class" : `${told.labels.length} classes`}`;
  get("modes").hidden = !told.refine;
}).catch((error) => say(error.message, true));
