// A grid of cells over a picture, such as one for each image token: to hover, to reach by the
// arrow keys, to press and to paint over.

import { element, fill, roving } from "./dom.js";

export class Cells {
  /**
   * `root` is an element of the class "cells". `hover(index)` is called for the mouse and the
   * keyboard, null when it leaves; `press(index, value)` for clicks, and while the mouse is down
   * for each cell that it comes over, with the value that the first press returned.
   */
  constructor(root, { hover = () => {}, press = null }) {
    [this.root, this.hover, this.press] = [root, hover, press];
    this.cells = [];
    this.painting = null;
    root.setAttribute("role", "grid");
    root.addEventListener("pointerover", ({ target }) => this.over(this.cells.indexOf(target)));
    root.addEventListener("focusin", ({ target }) => this.focused(this.cells.indexOf(target)));
    root.addEventListener("pointerleave", () => this.hover(null));
    root.addEventListener("focusout", () => this.hover(null));
    root.addEventListener("pointerdown", (event) => {
      const index = this.cells.indexOf(event.target);
      if (index < 0 || this.press === null) return;
      event.target.releasePointerCapture(event.pointerId);
      this.painting = { value: this.press(index) };
    });
    window.addEventListener("pointerup", () => (this.painting = null));
  }

  /** Makes the cells anew; `picture` is a canvas that lies behind them. */
  show(rows, columns, label, picture) {
    if (this.rows !== rows || this.columns !== columns) {
      this.cells = Array.from({ length: rows * columns }, () =>
        element("div", { role: "gridcell", class: "cell" }),
      );
      const lines = Array.from({ length: rows }, (_, row) =>
        element(
          "div",
          { role: "row", class: "row" },
          ...this.cells.slice(row * columns, (row + 1) * columns),
        ),
      );
      fill(this.root, ...lines);
      [this.rows, this.columns] = [rows, columns];
      this.root.style.setProperty("--columns", columns);
      roving(this.root, this.cells, columns, (index) => this.press?.(index));
    }
    this.root.setAttribute("aria-label", label);
    this.root.setAttribute("aria-rowcount", rows);
    this.root.setAttribute("aria-colcount", columns);
    this.root.style.setProperty("aspect-ratio", `${picture.width} / ${picture.height}`);
    this.root.style.setProperty("--ratio", picture.width / picture.height);
    this.root.style.setProperty("background-image", `url(${picture.toDataURL()})`);
  }

  over(index) {
    if (index < 0) return;
    this.hover(index);
    if (this.painting !== null) this.press(index, this.painting.value);
  }

  focused(index) {
    if (index >= 0) this.hover(index);
  }
}
