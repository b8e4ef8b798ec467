// All tokens of the prompt and the answer in one strip; image tokens show their part of it.

import { byId, element, fill, percent, roving, visible } from "./dom.js";

export class StripStation {
  constructor(app) {
    this.app = app;
    this.root = byId("strip-list");
    const token = ({ target }) => {
      const place = this.cells?.indexOf(target) ?? -1;
      return place < 0 ? null : app.run.partAt(place).image;
    };
    this.root.addEventListener("pointerover", (event) => app.point(token(event)));
    this.root.addEventListener("focusin", (event) => app.point(token(event)));
    this.root.addEventListener("pointerleave", () => app.point(null));
    this.root.addEventListener("focusout", () => app.point(null));
  }

  update(topic) {
    if (this.app.run === null) return;
    const grown = ["run", "step", "done", "language"].includes(topic);
    if (grown && this.isAnother()) this.show();
    if (grown || topic === "chosen") this.shade();
    if (topic === "pointed") {
      this.app.run.imagePlaces.forEach((place, image) => {
        this.cells[place].classList.toggle("pointed", image === this.app.pointed);
      });
    }
  }

  /** Whether something else is to be shown than what is there. */
  isAnother() {
    const { run, language } = this.app;
    const wanted = [run, run.steps.length, language];
    return !this.shown?.every((one, index) => one === wanted[index]);
  }

  show() {
    const { app } = this;
    const { run } = app;
    this.shown = [run, run.steps.length, app.language];
    const count = run.parts.length + run.steps.length;
    // Once for all its image tokens: an address takes long to read.
    if (this.sprite?.run !== run) this.sprite = { run, url: this.small() };
    this.root.style.setProperty("--picture", `url(${this.sprite.url})`);
    const counts = new Map();
    this.cells = Array.from({ length: count }, (_, place) => {
      const { kind, text, image } = run.partAt(place);
      counts.set(kind, (counts.get(kind) ?? 0) + 1);
      const named = app.words(`kind.${kind}`);
      if (image === null) {
        return element("span", {
          class: "token",
          role: "option",
          "data-kind": kind,
          "aria-label": `${named}: ${text}`,
          text: visible(text),
        });
      }
      const [left, top, width, height] = run.places.box(image);
      const starts = image % run.places.side ** 2 === 0;
      return element("span", {
        class: starts ? "patch start" : "patch",
        role: "option",
        "data-kind": kind,
        "aria-label": app.words("strip.image", { token: image + 1, kind: named }),
        style: {
          "background-size": `${100 / width}% ${100 / height}%`,
          "background-position": `${100 * share(left, width)}% ${100 * share(top, height)}%`,
        },
      });
    });
    this.root.setAttribute("aria-label", app.words("strip.list"));
    // A group for each kind, so that its name stands before it.
    const groups = [];
    this.cells.forEach((cell) => {
      const { kind } = cell.dataset;
      if (groups.length === 0 || groups[groups.length - 1].kind !== kind)
        groups.push({ kind, cells: [] });
      groups[groups.length - 1].cells.push(cell);
    });
    fill(
      this.root,
      ...groups.map(({ kind, cells }) =>
        element(
          "span",
          {
            class: "group",
            role: "group",
            "data-kind": kind,
            "aria-label": app.words(`kind.${kind}`),
          },
          element("span", {
            class: "name",
            "aria-hidden": "true",
            text: app.words(`kind.${kind}`),
          }),
          element("span", { class: "flow", role: "presentation" }, ...cells),
        ),
      ),
    );
    roving(this.root, this.cells, 18);
    byId("strip-numbers").textContent = app.words("strip.numbers", {
      all: count,
      parts: [...counts]
        .map(([kind, many]) =>
          app.words("strip.part", { count: many, kind: app.words(`kind.${kind}`) }),
        )
        .join(" + "),
    });
  }

  /** The picture, small, as an address for the backgrounds of all image tokens. */
  small() {
    const { run } = this.app;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [run.places.columns * 18, run.places.rows * 18];
    canvas.getContext("2d").drawImage(run.canvas, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL();
  }

  /** How much the chosen head reads each token for the chosen token of the answer. */
  shade() {
    const { run, step, layer, head } = this.app;
    const row = run.steps[step].attention[layer][head];
    const most = Math.max(...row);
    this.cells.forEach((cell, place) => {
      const share = place < row.length ? row[place] : 0;
      cell.style.setProperty("--read", most > 0 ? Math.sqrt(share / most) : 0);
      cell.title = `${cell.getAttribute("aria-label")} · ${percent(share)}`;
      cell.classList.toggle("answering", place === row.length);
    });
  }
}

/** A place in a background in CSS's measure: 0 at the beginning, 1 where its end is at the end. */
function share(start, length) {
  return length < 1 ? start / (1 - length) : 0;
}
