// Tiles and their margins, together and apart; the stitching modes beside each other.

import { byId, choose, css, element, fill, rgbOf } from "./dom.js";
import { canvasFrom } from "./drawing.js";

const GAP = 0.12; // of a core, between tiles with their margins when they are apart
const DURATION = 260; // milliseconds
const [TALLEST, LARGEST] = [560, 2.2]; // pixels of the page; of the page for one of a tile

export class TilesStation {
  constructor(app) {
    this.app = app;
    this.canvas = byId("tiles-canvas");
    this.apart = 1;
    this.answers = new Map(); // by mode, for one question and picture
    byId("tiles-apart").addEventListener("input", ({ target }) => {
      this.apart = Number(target.value) / 100;
      this.draw();
    });
    byId("tiles-compare").addEventListener("click", () => this.compare());
    new ResizeObserver(() => this.draw()).observe(this.canvas);
  }

  update(topic) {
    if (topic === "picture") this.answers.clear();
    if (!["run", "language", "theme"].includes(topic) || this.app.run === null) return;
    if (topic === "run") {
      this.tiles = this.app.run.tiles.map(canvasFrom);
      if (this.app.run.question !== this.asked) this.answers.clear();
    }
    this.describe();
    this.draw();
    this.showTable();
  }

  describe() {
    const { app } = this;
    const { grid, tiles, core, margin, patch, tokens, places } = app.run;
    const [rows, columns] = grid;
    choose(
      byId("tiles-mode"),
      app.words("tiles.mode"),
      app.modes.map((mode) => [mode, mode]),
      app.stitching,
      (mode) => {
        app.stitching = mode;
        app.ask();
      },
    );
    byId("tiles-mode-note").textContent = app.words(`tiles.mode.${app.run.stitching}`);
    byId("tiles-count").textContent = app.words("tiles.count", {
      rows,
      columns,
      thumbnail: places.hasThumbnail ? app.words("tiles.count.thumbnail") : "",
      each: tokens.length / tiles.length,
      all: tokens.length,
    });
    byId("tiles-numbers").textContent = app.words("tiles.numbers", {
      seen: tiles[0].width,
      core,
      margin,
      patch,
      padding: app.words(`padding.${app.config.tiler.padding}`),
    });
  }

  /** Slides to together (0) or apart (1), at once for who does not want motion. */
  slide(goal) {
    const from = this.apart;
    const began = performance.now();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const frame = (now) => {
      const time = still ? 1 : Math.min(1, (now - began) / DURATION);
      this.apart = from + (goal - from) * (1 - (1 - time) ** 3);
      byId("tiles-apart").value = Math.round(this.apart * 100);
      this.draw();
      if (time < 1) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  draw() {
    if (this.tiles === undefined) return;
    const { canvas, apart } = this;
    const { grid, core, margin, places } = this.app.run;
    const [rows, columns] = grid;
    const gap = GAP * core + 2 * margin; // between cores
    // The widest it ever gets, so that nothing jumps while it slides.
    const wide = columns * core + (columns - 1) * gap + 2 * margin;
    const high = rows * core + (rows - 1) * gap + 2 * margin;
    const beside = places.hasThumbnail ? core + 2 * margin + GAP * core * 3 : 0;
    const scale = Math.min(canvas.clientWidth / (wide + beside), TALLEST / high, LARGEST);
    const pixels = Math.max(1, window.devicePixelRatio);
    canvas.width = canvas.clientWidth * pixels;
    canvas.height = Math.max(high, core + 2 * margin) * scale * pixels;
    canvas.style.setProperty("height", `${canvas.height / pixels}px`);
    const pen = canvas.getContext("2d");
    pen.scale(scale * pixels, scale * pixels);
    pen.imageSmoothingQuality = "high";
    const step = core + apart * gap;
    const [left, top] = [
      (wide - (columns - 1) * step - core) / 2,
      (high - (rows - 1) * step - core) / 2,
    ];
    const shown = apart * margin; // how much of the margins is seen
    this.tiles.slice(0, rows * columns).forEach((tile, index) => {
      const x = left + (index % columns) * step;
      const y = top + Math.floor(index / columns) * step;
      this.drawTile(pen, tile, x, y, core, margin, shown);
    });
    if (places.hasThumbnail) {
      const x = wide + GAP * core * 3 + margin;
      this.drawTile(pen, this.tiles[rows * columns], x, (high - core) / 2, core, margin, margin);
    }
    canvas.setAttribute(
      "aria-label",
      this.app.words("tiles.picture", { apart: Math.round(apart * 100) }),
    );
  }

  /** A tile whose core has its corner at x, y; of the margin `shown` pixels, tinted. */
  drawTile(pen, tile, x, y, core, margin, shown) {
    const side = core + 2 * shown;
    const from = margin - shown;
    pen.drawImage(tile, from, from, side, side, x - shown, y - shown, side, side);
    const [r, g, b] = rgbOf(css("--accent"));
    pen.fillStyle = `rgba(${r}, ${g}, ${b}, 0.38)`;
    const frame = new Path2D();
    frame.rect(x - shown, y - shown, side, side);
    frame.rect(x, y, core, core);
    pen.fill(frame, "evenodd");
    pen.lineWidth = 1;
    pen.strokeStyle = css("--accent");
    pen.strokeRect(x, y, core, core);
  }

  /** The same question in every mode; the page goes on showing its own. */
  async compare() {
    const { app } = this;
    byId("tiles-compare").disabled = true;
    [this.asked, this.answers] = [app.question, new Map()];
    for (const mode of app.modes) {
      const run = await app.askBeside({ stitching: mode });
      if (run === null) break; // something else was asked meanwhile
      this.answers.set(mode, run);
      this.showTable();
    }
    byId("tiles-compare").disabled = false;
  }

  showTable() {
    const { app, answers } = this;
    byId("tiles-table").hidden = answers.size === 0;
    const heads = ["mode", "sees", "tokens", "answer"].map((name) =>
      element("th", { scope: "col", text: app.words(`tiles.head.${name}`) }),
    );
    const rows = [...answers].map(([mode, run]) => {
      const side = run.tiles[0].width;
      const cells = [`${side} × ${side}`, run.tokens.length, run.answer];
      return element(
        "tr",
        {},
        element("th", { scope: "row", text: mode }),
        ...cells.map((text) => element("td", { text })),
      );
    });
    const note = app.words("tiles.compare.note", { mode: app.config.tiler.stitching });
    fill(
      byId("tiles-table"),
      element("table", {}, element("tr", {}, ...heads), ...rows),
      element("p", { class: "note", text: note }),
    );
  }
}
