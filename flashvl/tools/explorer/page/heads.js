// A table of layers x heads, with a small picture of its attention for each head.

import { element, fill, roving } from "./dom.js";
import { drawHeat } from "./drawing.js";

/**
 * Fills `root` with a button for each head; on it `heats(layer, head)` gives what is drawn, a list
 * of {base, values, columns}, and `describe(layer, head)` gives {label, caption, off}.
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
    this.buttons.forEach((button, index) => {
      const [layer, head] = [Math.floor(index / heads), index % heads];
      const { label, caption, off } = describe(layer, head);
      const drawn = heats(layer, head);
      const pictures = button.querySelector(".heat");
      while (pictures.children.length < drawn.length) pictures.append(element("canvas"));
      while (pictures.children.length > drawn.length) pictures.lastChild.remove();
      drawn.forEach(({ base, values, columns, share }, place) => {
        const canvas = pictures.children[place];
        drawHeat(canvas, base, values, columns, most);
        canvas.style.setProperty("flex", `${share} 1 0`);
      });
      button.querySelector(".caption").textContent = caption;
      button.setAttribute("aria-label", label);
      button.setAttribute("aria-pressed", String(chosen === index));
      button.classList.toggle("off", off === true);
    });
  }

  build(layers, heads) {
    const { words } = this;
    [this.layers, this.heads, this.language] = [layers, heads, words("title")];
    this.buttons = Array.from({ length: layers * heads }, (_, index) =>
      element(
        "button",
        {
          type: "button",
          class: "head",
          onclick: () => this.press?.(Math.floor(index / heads), index % heads),
        },
        element("span", { class: "heat" }),
        element("span", { class: "caption" }),
      ),
    );
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
