// The page of `arlow demo`: a chat with a model about images, and where it looked for each word that it wrote.
// Text of a model or a person is only ever set as text, never as HTML.

import { Answer, make } from "./answers.js";
import { answer, Refused, settings, useKey } from "./asking.js";
import { examples } from "./examples.js";

const at = (id) => document.getElementById(id);
const fields = [...at("options").querySelectorAll("input")];

let server = null; // its settings
let messages = []; // the conversation, as the API takes it
let shown = []; // its images, in order
let tray = []; // images of the next turn: { name, url, problem }
let running = null; // AbortController of the answer that is being written

// Images

function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    // An empty file has no base64 of its own.
    reader.onload = () => resolve(`data:${file.type};base64,${reader.result.split(",")[1] ?? ""}`);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function addFiles(files) {
  if (!server) return;
  if (!server.sees_images && files.length) return complain("this is a text model: it takes no images");
  for (const file of files) {
    const image = { name: file.name || "pasted image", url: "", problem: "" };
    tray.push(image);
    update(); // nothing is sent before it is read
    try {
      image.url = await readFile(file);
    } catch {
      image.problem = "cannot be read; is it a folder?";
    }
  }
  drawTray();
}

function thumbnail(image) {
  const element = make("img", { src: image.url, alt: image.name });
  // Some formats that the server reads, browsers do not show.
  element.onerror = () => element.replaceWith(make("span", { className: "nopreview", textContent: image.name }));
  return element;
}

function drawTray() {
  at("tray").replaceChildren(...tray.map((image, place) => {
    const remove = make("button", { type: "button", className: "remove", ariaLabel: `Remove ${image.name}` }, "×");
    remove.onclick = () => {
      tray.splice(place, 1);
      drawTray();
      at("choose").control.focus();
    };
    const item = make("li", { title: image.name }, thumbnail(image), remove);
    if (image.problem) {
      item.className = "broken";
      item.append(make("p", { className: "error", role: "alert", textContent: `${image.name}: ${image.problem}` }));
    }
    return item;
  }));
  at("tray").hidden = !tray.length;
  update();
}

// Problems

function complain(sentence) {
  at("problem").textContent = sentence;
}

function clearProblems() {
  complain("");
  for (const image of tray) image.problem = "";
  for (const field of fields) {
    field.removeAttribute("aria-invalid");
    field.parentElement.querySelector(".error")?.remove();
  }
}

/** Shows the server's sentence beside the image or field that it is about. `turn` is the number of the last message. */
function tell(error, turn) {
  if (error.name === "AbortError") return; // stopped
  if (error.status === 401) return askForKey();
  const place = error.param?.match(/^messages\[(\d+)\]\.content\[(\d+)\]$/);
  const image = place && Number(place[1]) === turn ? tray[Number(place[2])] : null;
  const field = fields.find((one) => one.name === error.param);
  if (image) {
    image.problem = error.message.replaceAll(`${error.param}: `, "").replaceAll(error.param, "it");
  } else if (field) {
    at("options").open = true;
    field.setAttribute("aria-invalid", "true");
    field.parentElement.append(make("span", { className: "error", role: "alert", textContent: error.message }));
    field.focus();
  } else {
    complain(error.message);
  }
  drawTray();
  at("tray").querySelector(".broken")?.scrollIntoView({ block: "nearest" });
}

// Turns

function showQuestion(images, text) {
  const element = make("article", { className: "question", ariaLabel: "Question" });
  for (const image of images) {
    shown.push(image);
    const name = `image ${shown.length}`;
    element.append(make("figure", { title: image.name }, thumbnail(image), make("figcaption", { textContent: name })));
  }
  element.append(make("p", { textContent: text || "Caption" }));
  return element;
}

function decoding() {
  const given = fields.filter((field) => field.value !== "" || field.validity.badInput);
  // What is not a number is sent as "?", for the server to refuse it by its name.
  return Object.fromEntries(given.map((field) => [field.name, field.validity.badInput ? "?" : Number(field.value)]));
}

/** Asks about the images of the tray, for a caption where there is no text. */
async function send(text) {
  if (running) return;
  clearProblems();
  const images = tray, parts = images.map((image) => ({ type: "image_url", image_url: { url: image.url } }));
  const content = images.length ? [...parts, ...(text ? [{ type: "text", text }] : [])] : text;
  const asked = { model: server.model, messages: [...messages, { role: "user", content }] };
  const size = JSON.stringify(asked).length;
  if (size > server.max_body) {
    const [came, most] = [size, server.max_body].map((bytes) => (bytes / 2 ** 20).toFixed(1));
    return complain(`the images take ${came} MB to send, and a request may have ${most}; remove or shrink some`);
  }
  const question = showQuestion(images, text), written = new Answer();
  at("turns").append(question, written.element);
  tray = [];
  at("question").value = "";
  const failure = await write(asked, written);
  if (!question.isConnected) return; // a new conversation has begun meanwhile
  if (failure && !written.ids.length) { // nothing came: the turn is taken back, to be corrected or asked again
    question.remove();
    written.element.remove();
    shown.splice(-images.length, images.length);
    tray = [...images, ...tray];
    at("question").value ||= text;
    drawTray();
    return tell(failure, asked.messages.length - 1);
  }
  written.end(failure);
  messages = [...asked.messages, { role: "assistant", content: written.text }];
  update();
  at("said").textContent = `Answer: ${written.text}`;
  if (shown.length && written.ids.length) await written.look(asked);
}

/** Fills an answer as it comes. Returns the error that ended it early, a Refused or an AbortError, else null. */
async function write(asked, written) {
  const wanted = { stream: true, stream_options: { include_usage: true }, return_token_ids: true };
  running = new AbortController();
  const { signal } = running;
  drawTray();
  written.reveal();
  try {
    for await (const chunk of answer({ ...asked, ...wanted, ...decoding() }, signal)) written.add(chunk);
    return null;
  } catch (error) {
    if (!signal.aborted && !(error instanceof Refused)) throw error;
    return error;
  } finally {
    if (running?.signal === signal) running = null;
    update();
  }
}

function beginAnew() {
  running?.abort();
  tray = [...shown, ...tray]; // the images stay for another question
  [messages, shown] = [[], []];
  at("turns").replaceChildren();
  running = null;
  clearProblems();
  drawTray();
  at("question").focus();
}

// The page

function update() {
  const hasBegun = messages.length > 0 || running !== null;
  at("welcome").hidden = !server?.sees_images || hasBegun;
  at("anew").hidden = !hasBegun;
  at("stop").hidden = running === null;
  at("send").hidden = running !== null;
  const isRead = tray.every((image) => image.url); // an unread image cannot be sent
  at("send").disabled = !server || !isRead || (!at("question").value.trim() && !tray.length);
  at("caption").hidden = !server?.sees_images;
  at("caption").disabled = !isRead || !tray.length || running !== null;
}

function askForKey() {
  const isWrong = at("key").value !== "";
  at("lock-problem").textContent = isWrong ? "this is not the server's key; ask whoever started the server" : "";
  if (!at("lock").open) at("lock").showModal();
}

async function begin() {
  try {
    server = await settings();
  } catch (error) {
    if (error.status === 401) return askForKey();
    at("lock").close();
    return complain(error.message);
  }
  at("lock").close();
  document.title = `${server.model} · Arlow-VL`;
  at("about").textContent = `model ${server.model}${server.sees_images ? "" : ", of text alone: it takes no images"}`;
  at("choose").hidden = at("files").hidden = !server.sees_images;
  const most = fields.find((field) => field.name === "max_tokens");
  most.value = Math.min(most.value, server.max_tokens);
  update();
  if (!server.sees_images || at("examples").childElementCount) return;
  for (const { name, question, file } of await examples()) {
    const image = make("img", { src: URL.createObjectURL(file), alt: "" });
    const button = make("button", { type: "button", className: "example" }, image, name);
    button.onclick = () => {
      at("question").value ||= question;
      addFiles([file]);
    };
    at("examples").append(button);
  }
}

at("ask").onsubmit = (event) => {
  event.preventDefault();
  if (!at("send").disabled) send(at("question").value.trim());
};
at("question").oninput = update;
at("question").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
};
at("ask").noValidate = true; // the server's sentences say more than a browser's
at("options").ontoggle = () => at("options").open && at("options").scrollIntoView({ block: "nearest" });
at("caption").onclick = () => send("");
at("stop").onclick = () => running?.abort();
at("anew").onclick = beginAnew;
at("files").onchange = () => {
  addFiles([...at("files").files]);
  at("files").value = "";
};
document.onpaste = (event) => addFiles([...event.clipboardData.files]);
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
};
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  addFiles([...event.dataTransfer.files]);
};
at("unlock").onsubmit = (event) => {
  event.preventDefault();
  useKey(at("key").value);
  begin();
};
drawTray();
begin();
