// The tower: a patch of a tile, its pixels, and where every head of every layer looks from there.

import { Cells } from "./cells.js";
import { byId, choose, percent } from "./dom.js";
import { canvasFrom, canvasOf, faded } from "./drawing.js";
import { Heads } from "./heads.js";

export class TowerStation {
  constructor(app) {
    this.app = app;
    [this.tile, this.patch] = [0, null]; // null: nobody has chosen one
    this.cells = new Cells(byId("tower-patches"), { press: (index) => this.choose(index) });
    this.heads = new Heads(byId("tower-heads"), (key, values) => app.words(key, values));
  }

  update(topic) {
    if (!["run", "language", "theme"].includes(topic) || this.app.run === null) return;
    const { tiles } = this.app.run;
    if (this.patch === null || this.tile >= tiles.length || this.patch >= this.side ** 2) {
      [this.tile, this.patch] = this.busiestPatch();
    }
    this.show();
  }

  choose(patch) {
    this.patch = patch;
    this.show();
  }

  /** Where there is something to see: [tile, patch] of the patch whose pixels differ most. */
  busiestPatch() {
    const { places, patch } = this.app.run;
    const tiles = this.app.run.tiles.slice(0, places.gridRows * places.gridColumns);
    let best = [0, 0, -1];
    tiles.forEach(({ rgb, width }, tile) => {
      for (let index = 0; index < this.side ** 2; index++) {
        const [top, left] = [Math.floor(index / this.side) * patch, (index % this.side) * patch];
        const [sums, squares] = [
          [0, 0, 0],
          [0, 0, 0],
        ];
        for (let place = 0; place < patch ** 2 * 3; place++) {
          const [y, x] = [Math.floor(place / 3 / patch), Math.floor(place / 3) % patch];
          const value = rgb[((top + y) * width + left + x) * 3 + (place % 3)];
          sums[place % 3] += value;
          squares[place % 3] += value ** 2;
        }
        const spread = squares.reduce((sum, one, c) => sum + one - sums[c] ** 2 / patch ** 2, 0);
        if (spread > best[2]) best = [tile, index, spread];
      }
    });
    return best;
  }

  get side() {
    return this.app.run.tiles[0].width / this.app.run.patch;
  }

  show() {
    const { app, side } = this;
    const { run } = app;
    const thumbnail = run.places.hasThumbnail ? run.tiles.length - 1 : -1;
    const names = run.tiles.map((_, tile) => [
      tile,
      tile === thumbnail ? app.words("tower.thumbnail") : `${tile + 1}`,
    ]);
    choose(byId("tower-tiles"), app.words("tower.tile"), names, this.tile, (tile) => {
      this.tile = tile;
      this.show();
    });
    byId("tower-text").textContent = app.words("tower.text", { side });
    const picture = canvasFrom(run.tiles[this.tile]);
    this.cells.show(side, side, app.words("tower.patches"), picture);
    this.cells.cells.forEach((cell, index) => {
      cell.setAttribute("aria-label", this.nameOf(index));
      cell.setAttribute("aria-selected", String(index === this.patch));
    });
    byId("tower-patch").textContent = this.nameOf(this.patch);
    this.showPixels(picture);
    this.showHeads(picture);
  }

  nameOf(index) {
    const { app, side } = this;
    const [row, column] = [Math.floor(index / side) + 1, (index % side) + 1];
    return app.words("tower.patch", { row, column });
  }

  showPixels(picture) {
    const { patch } = this.app.run;
    const pixels = byId("tower-pixels");
    [pixels.width, pixels.height] = [patch, patch];
    const [x, y] = [(this.patch % this.side) * patch, Math.floor(this.patch / this.side) * patch];
    pixels.getContext("2d").drawImage(picture, x, y, patch, patch, 0, 0, patch, patch);
    pixels.setAttribute(
      "aria-label",
      `${this.nameOf(this.patch)}: ${this.app.words("tower.pixels")}`,
    );
  }

  showHeads(picture) {
    const { app, side } = this;
    const words = (key, values) => app.words(key, values);
    const attention = app.run.attention[this.tile]; // layers x (H, N, N)
    const heads = app.run.towerHeads;
    const N = side ** 2;
    const rowOf = (layer, head) => {
      const start = (head * N + this.patch) * N;
      return attention[layer].subarray(start, start + N);
    };
    let most = 0;
    attention.forEach((_, layer) => {
      for (let head = 0; head < heads; head++) most = Math.max(most, ...rowOf(layer, head));
    });
    const base = marked(faded(picture, 96), this.patch, side);
    this.heads.show({
      layers: attention.length,
      heads,
      most,
      chosen: null,
      heats: (layer, head) => [{ base, values: rowOf(layer, head), columns: side }],
      describe: (layer, head) => ({
        label: words("tower.heat", { layer, head }),
        caption: "",
      }),
    });
    byId("tower-numbers").textContent = words("tower.numbers", {
      patches: N,
      width: app.config.vision.width,
      layers: attention.length,
      heads,
      squares: attention.length * heads * N,
      most: percent(most),
    });
  }
}

/** A faded tile with a frame around the chosen patch. */
function marked(base, patch, side) {
  const canvas = canvasOf(base.width, base.height);
  const pen = canvas.getContext("2d");
  pen.drawImage(base, 0, 0);
  const width = base.width / side;
  pen.lineWidth = 2;
  pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--text");
  pen.strokeRect((patch % side) * width, Math.floor(patch / side) * width, width, width);
  return canvas;
}
