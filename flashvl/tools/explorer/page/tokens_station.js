// The image tokens in their places, each with the nearest word of the decoder.

import { Cells } from "./cells.js";
import { byId, choose } from "./dom.js";

export class TokensStation {
  constructor(app) {
    this.app = app;
    this.shown = "words";
    const made = (id, thumbnail) =>
      new Cells(byId(id), {
        hover: (index) => app.point(index === null ? null : this.tokenAt(index, thumbnail)),
      });
    this.tiles = made("tokens-tiles", false);
    this.thumbnail = made("tokens-thumbnail", true);
  }

  update(topic) {
    if (this.app.run === null) return;
    if (["run", "language", "theme"].includes(topic)) this.show();
    if (["run", "language", "pointed"].includes(topic)) this.showPointed();
  }

  tokenAt(index, thumbnail) {
    const { places } = this.app.run;
    const columns = thumbnail ? places.side : places.columns;
    return places.token(Math.floor(index / columns), index % columns, thumbnail);
  }

  show() {
    const { app } = this;
    const { places, tokens } = app.run;
    choose(
      byId("tokens-show"),
      app.words("tokens.show"),
      ["words", "norms"].map((name) => [name, app.words(`tokens.${name}`)]),
      this.shown,
      (shown) => {
        this.shown = shown;
        this.show();
      },
    );
    const picture = app.fadedPicture();
    this.tiles.show(places.rows, places.columns, app.words("tokens.grid"), picture);
    byId("tokens-thumbnail-part").hidden = !places.hasThumbnail;
    byId("tokens-pictures").style.setProperty("--columns", places.columns);
    byId("tokens-pictures").style.setProperty("--side", places.side);
    if (places.hasThumbnail) {
      this.thumbnail.show(places.side, places.side, app.words("tokens.thumbnail"), picture);
    }
    const cosines = tokens.map(({ words }) => words[app.language][0].cosine);
    const norms = tokens.map(({ norm }) => norm);
    this.range = { cosines: rangeOf(cosines), norms: rangeOf(norms) };
    this.label(this.tiles, false);
    if (places.hasThumbnail) this.label(this.thumbnail, true);
    const {
      cosines: [weakest, strongest],
      norms: [least, most],
    } = this.range;
    byId("tokens-numbers").textContent = app.words("tokens.numbers", {
      count: tokens.length,
      width: app.config.decoder.width,
      least: least.toFixed(1),
      most: most.toFixed(1),
      weakest: weakest.toFixed(2),
      strongest: strongest.toFixed(2),
    });
  }

  label(grid, thumbnail) {
    const { app, shown } = this;
    grid.cells.forEach((cell, index) => {
      const token = this.tokenAt(index, thumbnail);
      const { words, norm } = app.run.tokens[token];
      const { text, cosine } = words[app.language][0];
      cell.setAttribute("aria-label", this.describe(token));
      const strength = within(cosine, this.range.cosines);
      cell.textContent = shown === "words" ? text : "";
      cell.style.setProperty("--strength", shown === "words" ? strength ** 1.5 : 0);
      cell.style.setProperty("--norm", shown === "norms" ? within(norm, this.range.norms) : 0);
      cell.classList.toggle("long", widthOf(text) > 5);
    });
  }

  describe(token) {
    const { app } = this;
    const { row, column } = app.run.places.position(token);
    const { words, norm } = app.run.tokens[token];
    const nearest = words[app.language].map(({ text, cosine }) => `${text} ${cosine.toFixed(2)}`);
    return app.words("tokens.cell", {
      row: row + 1,
      column: column + 1,
      words: nearest.join(" · "),
      norm: norm.toFixed(1),
    });
  }

  showPointed() {
    const { app } = this;
    const token = app.pointed ?? null;
    byId("tokens-cell").textContent =
      token === null ? app.words("tokens.hint") : this.describe(token);
    for (const [grid, thumbnail] of [
      [this.tiles, false],
      [this.thumbnail, true],
    ]) {
      grid.cells.forEach((cell, index) => {
        const here = token !== null && this.tokenAt(index, thumbnail) === token;
        cell.classList.toggle("pointed", here);
      });
    }
  }
}

/** In Latin letters, of which a Chinese one takes two. */
function widthOf(text) {
  return Array.from(text).reduce((sum, letter) => sum + (letter > "\u2e7f" ? 2 : 1), 0);
}

function rangeOf(values) {
  return [Math.min(...values), Math.max(...values)];
}

function within(value, [least, most]) {
  return most > least ? (value - least) / (most - least) : 1;
}
