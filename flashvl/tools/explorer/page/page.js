// The page: what is chosen, what was answered, and who is told when either changes.

import { FlashVLConfig } from "../model/config.js";
import { GREEDY } from "../model/generate.js";
import { DecoderStation } from "./decoder_station.js";
import { Desk } from "./desk.js";
import { byId, element, fill } from "./dom.js";
import { canvasOf, faded, pictureFrom } from "./drawing.js";
import { Runner } from "./run.js";
import { Scene } from "./scene.js";
import { StripStation } from "./strip_station.js";
import { TilesStation } from "./tiles_station.js";
import { TokensStation } from "./tokens_station.js";
import { Tour } from "./tour.js";
import { TowerStation } from "./tower_station.js";
import { WithoutStation } from "./without_station.js";
import { LANGUAGES, WORDS } from "./words.js";

const PAUSE = 150; // milliseconds after the last change, before the model is asked by itself
const NOTEBOOKS = {
  1: "01_pixels_to_tokens.ipynb",
  2: "02_tiles_and_seams.ipynb",
  3: "03_compressor.ipynb",
  4: "04_words_in_and_out.ipynb",
  5: "05_decoder.ipynb",
  6: "06_reading_the_picture.ipynb",
};

/**
 * What is chosen and what was answered. `tell(topic)` calls `update(topic)` of every part:
 *
 * language, theme: all is to be written or drawn anew; picture: it was changed; asked: the model
 * begins; progress: a message of its work; run: another run is shown; step: its answer has grown;
 * done: it is whole; chosen: another token or head; pointed: another image token; without:
 * something was switched off or on.
 */
export class App {
  constructor(data, digits) {
    this.data = data;
    this.config = FlashVLConfig.fromDict(data.config);
    this.language = navigator.language.startsWith("zh") ? "zh" : "en";
    this.scene = new Scene(digits, data.digitSize);
    this.stitching = this.config.tiler.stitching;
    this.without = { tokens: new Set(), heads: new Set() };
    this.question = data.question ?? this.words("questions")[0];
    [this.run, this.before] = [null, null]; // shown; the last one that nothing was taken from
    [this.step, this.layer, this.head] = [0, 0, 0];
    this.pictureSent = false;
    [this.timer, this.frame] = [null, null];
  }

  /** Parts are made once the model is open. */
  open({ texts, modes }) {
    [this.texts, this.modes] = [texts, modes];
    this.tiles = new TilesStation(this);
    this.tower = new TowerStation(this);
    this.parts = [
      (this.desk = new Desk(this)),
      this.tiles,
      this.tower,
      new TokensStation(this),
      new StripStation(this),
      new DecoderStation(this),
      new WithoutStation(this),
      (this.tour = new Tour(this)),
    ];
    this.translate();
  }

  words(key, values = {}) {
    const text = WORDS[this.language][key];
    if (typeof text !== "string") return text;
    return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  }

  /** What a thing of the picture is called. */
  nameOf({ shape, color, digits }) {
    const named =
      shape === "number" ? `${this.words("name.number")} ${digits}` : this.words(`name.${shape}`);
    return this.words("name.thing", { color: this.words(`name.${color}`), shape: named });
  }

  translate() {
    document.documentElement.lang = this.language === "zh" ? "zh-Hans" : "en";
    for (const one of document.querySelectorAll("[data-words]")) {
      one.textContent = this.words(one.dataset.words);
    }
    const { name, parameters } = this.data;
    byId("about").textContent = this.words("about", {
      name,
      parameters: parameters.toLocaleString(document.documentElement.lang),
    });
    for (const one of document.querySelectorAll("[data-notebook]")) {
      const number = one.dataset.notebook;
      const text = this.words("more", { number, title: this.words(`notebook.${number}`) });
      const { notebooks } = this.data;
      const href = `${notebooks}/${NOTEBOOKS[number]}`;
      fill(one, notebooks === null ? text : element("a", { href, text }));
    }
    this.tell("language");
  }

  tell(topic) {
    for (const part of this.parts) part.update(topic);
  }

  /** The picture is another one: nothing is taken away from it, and the model looks at it. */
  pictureChanged() {
    this.pictureSent = false;
    this.without.tokens.clear();
    this.tell("picture");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), PAUSE);
  }

  /** Asks, and shows what is found -> the run, or null if something newer came. */
  async ask() {
    clearTimeout(this.timer);
    this.clicked = performance.now();
    this.tell("asked");
    const asking = this.submit({});
    this.asking = asking;
    const run = await asking;
    if (run === null) return null;
    run.seconds = (performance.now() - this.clicked) / 1000;
    if (this.nothingIsAway(run)) this.before = run;
    this.tell("done");
    return run;
  }

  /** A run with other settings that the page does not show; it waits for one that it does. */
  async askBeside(changes) {
    await this.asking;
    return this.submit(changes, false);
  }

  submit(changes, shown = true) {
    const picture = this.pictureSent ? null : pictureFrom(this.scene.canvas);
    if (picture !== null) {
      this.snapshot = canvasOf(this.scene.canvas.width, this.scene.canvas.height);
      this.snapshot.getContext("2d").drawImage(this.scene.canvas, 0, 0);
    }
    this.pictureSent = true;
    const without = {
      tokens: new Set(this.without.tokens),
      heads: new Set(this.without.heads),
    };
    const { stitching, question } = this;
    const sampling = { ...GREEDY, maxNewTokens: 64 };
    const job = { picture, stitching, question, sampling, without, ...changes };
    return this.runner.ask(job, this.snapshot, shown);
  }

  nothingIsAway({ without }) {
    return without.tokens.size === 0 && without.heads.size === 0;
  }

  /** A message of the run that is to be shown: it is shown from its first token on. */
  changed(run, message) {
    if (message.kind !== "token") {
      this.progress = { run, message };
      this.tell("progress");
      return;
    }
    if (this.run !== run) {
      [this.run, this.step] = [run, 0];
      if (!run.choseHead) [this.layer, this.head] = this.sharpestHead();
      this.tell("run");
    } else if (this.frame === null) {
      this.frame = requestAnimationFrame(() => {
        this.frame = null;
        this.tell("step");
      });
    }
  }

  /** The head whose attention for the chosen token is strongest on one image token. */
  sharpestHead() {
    let best = [0, 0, 0];
    this.run.steps[this.step].attention.forEach((heads, layer) =>
      heads.forEach((_, head) => {
        const { values, share } = this.run.onPicture(this.step, layer, head);
        const score = Math.max(...values) * share;
        if (score > best[2]) best = [layer, head, score];
      }),
    );
    return best;
  }

  choose(step, layer, head) {
    [this.step, this.layer, this.head] = [step, layer, head];
    this.tell("chosen");
  }

  /** An image token under the mouse or the focus, in whatever part of the page; null: none. */
  point(token) {
    if (token === this.pointed) return;
    this.pointed = token;
    this.tell("pointed");
  }

  fadedPicture() {
    if (
      this.faded?.run !== this.run ||
      this.faded.theme !== document.documentElement.dataset.theme
    ) {
      const theme = document.documentElement.dataset.theme;
      this.faded = { run: this.run, theme, canvas: faded(this.run.canvas) };
    }
    return this.faded.canvas;
  }

  failed(reason) {
    const error = byId("error");
    error.hidden = false;
    error.textContent = this.words("error.model", { reason });
    byId("progress").hidden = true;
    byId("desk").setAttribute("aria-busy", "false");
  }
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

async function bitmapOf(base64) {
  return createImageBitmap(new Blob([bytesOf(base64)], { type: "image/png" }));
}

async function start() {
  const data = JSON.parse(byId("data").textContent);
  const bitmap = await bitmapOf(data.digits);
  const digits = canvasOf(bitmap.width, bitmap.height);
  digits.getContext("2d").drawImage(bitmap, 0, 0);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
  const app = new App(data, digits);
  byId("status").textContent = app.words("wait");
  if (data.image !== null) app.scene.showPhoto(await bitmapOf(data.image));
  app.runner = new Runner({
    script: byId("worker").textContent,
    data: { config: data.config, tokenizer: data.tokenizer, stopIds: data.stopIds },
    weights: bytesOf(byId("weights").textContent),
    changed: (run, message) => app.changed(run, message),
    failed: (reason) => app.failed(reason),
    opened: (message) => {
      app.open(message);
      app.tell("picture");
      app.tour.start(location.hash) || app.ask();
    },
  });
  byId("language").addEventListener("click", () => {
    const asked = WORDS[app.language].questions.indexOf(app.question);
    app.language = Object.keys(LANGUAGES).find((one) => one !== app.language);
    if (asked >= 0) app.question = app.words("questions")[asked];
    app.translate();
    if (asked >= 0) app.ask();
  });
  byId("theme").addEventListener("click", () => {
    const { dataset } = document.documentElement;
    dataset.theme = dataset.theme === "dark" ? "light" : "dark";
    app.tell("theme");
  });
}

start();
