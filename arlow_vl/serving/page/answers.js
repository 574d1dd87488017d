// Answers on the page: text as it comes, then each word with its heat over the images.

import { heatOf, Refused } from "./asking.js";
import { Maps } from "./heat.js";

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** One answer, while it is written and afterwards. */
export class Answer {
  text = "";
  ids = [];
  #began = performance.now();

  constructor() {
    this.words = make("p", { className: "text" }, make("span", { className: "cursor" }));
    this.note = make("p", { className: "note", textContent: "reading …" });
    this.element = make("article", { className: "answer", ariaLabel: "Answer" }, this.words, this.note);
  }

  add({ choices: [choice], usage }) {
    if (usage) this.usage = usage;
    if (!choice) return;
    this.ids.push(...choice.token_ids);
    this.reason = choice.finish_reason ?? this.reason;
    if (!choice.token_ids.length) return;
    this.last = performance.now();
    this.first ??= this.last;
    this.text += choice.delta.content ?? "";
    this.words.replaceChildren(this.text, make("span", { className: "cursor" }));
    this.tellTimes();
  }

  tellTimes() {
    const count = this.usage?.completion_tokens ?? this.ids.length;
    const times = [`first token after ${((this.first - this.#began) / 1000).toFixed(2)} s`];
    if (this.ids.length > 1) times.push(`${((this.last - this.first) / (this.ids.length - 1)).toFixed(0)} ms a token`);
    times.push(`${count} token${count === 1 ? "" : "s"}`);
    if (this.reason === "length") times.push("cut at max tokens");
    if (this.isStopped) times.push("stopped");
    this.note.textContent = times.join(" · ");
  }

  /** `failure` is the error that ended the answer early, if any. */
  end(failure) {
    this.isStopped = failure?.name === "AbortError";
    this.words.replaceChildren(this.text.trim() || make("em", { textContent: "The model wrote nothing." }));
    if (this.first !== undefined) this.tellTimes();
    else this.note.textContent = "";
    if (!failure || this.isStopped) return;
    this.element.append(make("p", { className: "error", role: "alert", textContent: failure.message }));
  }

  async look(body) {
    const note = make("p", { className: "note", textContent: "looking where it looked …" });
    this.element.append(note);
    try {
      await this.showHeat(await heatOf({ ...body, token_ids: this.ids }));
      note.remove();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      note.textContent = `no heat maps: ${error.message}`;
    }
  }

  async showHeat(reply) {
    if (!reply.words.length) return;
    const maps = await Maps.of(reply);
    const captions = maps.views.map((view) => {
      const caption = make("figcaption");
      this.#figures.append(make("figure", {}, view.canvas, caption));
      view.canvas.setAttribute("role", "img");
      return caption;
    });
    const numbers = reply.layers.join(", ");
    const layers = reply.layers.length > 1 ? `the mean of layers ${numbers}` : `layer ${numbers}`;
    const scale = make("p", { className: "scale" }, "0 ", maps.bar(120, 10), ` ${reply.scale.top.toFixed(1)} times the `
      + `even share of the cross-attention, ${layers}, over ${reply.places} places`);
    this.element.append(this.#figures, scale);
    if (reply.words.length > 1) this.note.textContent += " · choose a word to see where the model looked for it";
    const choose = (word) => {
      maps.draw(word.heat);
      maps.views.forEach((view, number) => {
        const share = word.heat[number].reduce((sum, times) => sum + times, 0) / reply.places;
        const isAlone = maps.views.every((other) => other === view || other.image !== view.image);
        const name = `image ${view.image + 1}${isAlone ? "" : `, ${view.label}`}`;
        const told = `${(100 * share).toFixed(0)}% of the attention`, most = `peak ${word.peak.toFixed(1)} times even`;
        captions[number].textContent = maps.views.length > 1 ? `${name}: ${told}` : `“${word.word}”: ${most}`;
        view.canvas.ariaLabel = `Where the model looked in ${name} for “${word.word}”: ${told}, ${most}`;
      });
    };
    this.#wrapWords(reply.words, choose);
    this.reveal();
  }

  /** Scrolls to the answer, to its beginning where it is long; not if another turn has begun below it. */
  reveal() {
    if (this.element.nextElementSibling) return;
    const isLong = this.element.offsetHeight > window.innerHeight / 2;
    this.element.scrollIntoView({ block: isLong ? "start" : "nearest" });
  }

  #figures = make("div", { className: "maps" });

  /** Makes each word a button. Tab reaches one of them, the arrow keys the others. */
  #wrapWords(words, choose) {
    const text = this.text.trim(), parts = [], buttons = [];
    let end = 0;
    for (const word of words) {
      const start = text.indexOf(word.word, end);
      if (start < 0) continue; // half a character, which the whole text shows as another
      const button = make("button", { type: "button", className: "word", textContent: word.word, tabIndex: -1 });
      button.title = `peak ${word.peak.toFixed(1)} times even`;
      button.onclick = button.onfocus = button.onpointerenter = () => {
        for (const other of buttons) [other.tabIndex, other.ariaPressed] = [-1, "false"];
        [button.tabIndex, button.ariaPressed] = [0, "true"];
        choose(word);
      };
      parts.push(text.slice(end, start), button);
      buttons.push(button);
      end = start + word.word.length;
    }
    this.words.replaceChildren(...parts, text.slice(end));
    this.words.onkeydown = (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1 };
      const next = buttons[buttons.indexOf(event.target) + steps[event.key]];
      if (!next) return;
      event.preventDefault();
      next.focus();
    };
    // Shows at first the word with the highest peak.
    const peaks = words.map((word) => word.peak);
    buttons[peaks.indexOf(Math.max(...peaks))]?.onclick();
  }
}
