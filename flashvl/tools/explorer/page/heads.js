// A table of layers x heads, with a small picture of its attention for each head.

import { css, element, fill, rgbOf, roving } from "./dom.js";
import { drawHeat } from "./drawing.js";

/**
 * Fills `root` with a picture for each head, a button if there is something to `press`; on it
 * `heats(layer, head)` gives what is drawn, a list of {base, values, columns}, and
 * `describe(layer, head)` gives {label, caption, off}.
 */
export class Heads {
  constructor(root, words, press = null) {
    [this.root, this.words, this.press] = [root, words, press];
  }

  show({ layers, heads, most, chosen, heats, describe }) {
    const { words } = this;
    if (this.layers !== layers || this.heads !== heads || this.language !== words("title")) {
      this.build(layers, heads);
    }
    const color = rgbOf(css("--accent")); // read once: each time, the page's styles are settled
    this.buttons.forEach((button, index) => {
      const [layer, head] = [Math.floor(index / heads), index % heads];
      const { label, caption, off } = describe(layer, head);
      const drawn = heats(layer, head);
      const pictures = button.querySelector(".heat");
      while (pictures.children.length < drawn.length) pictures.append(element("canvas"));
      while (pictures.children.length > drawn.length) pictures.lastChild.remove();
      drawn.forEach(({ base, values, columns }, place) =>
        drawHeat(pictures.children[place], base, values, columns, most, color),
      );
      button.querySelector(".caption").textContent = caption;
      button.setAttribute("aria-label", label);
      if (this.press !== null) button.setAttribute("aria-pressed", String(chosen === index));
      button.classList.toggle("off", off === true);
    });
  }

  build(layers, heads) {
    const { words } = this;
    [this.layers, this.heads, this.language] = [layers, heads, words("title")];
    const press = (index) => this.press(Math.floor(index / heads), index % heads);
    this.buttons = Array.from({ length: layers * heads }, (_, index) =>
      element(
        this.press === null ? "div" : "button",
        this.press === null ? { role: "img" } : { type: "button", onclick: () => press(index) },
        element("span", { class: "heat" }),
        element("span", { class: "caption" }),
      ),
    );
    for (const button of this.buttons) button.classList.add("head");
    this.root.style.setProperty("--heads", heads);
    const names = Array.from({ length: heads }, (_, head) =>
      element("span", { class: "name", text: words("tower.head", { head }) }),
    );
    const rows = Array.from({ length: layers }, (_, layer) => [
      element("span", { class: "name", text: words("tower.layer", { layer }) }),
      ...this.buttons.slice(layer * heads, (layer + 1) * heads),
    ]);
    fill(this.root, element("span"), ...names, ...rows.flat());
    roving(this.root, this.buttons, heads);
  }
}
