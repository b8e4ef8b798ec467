// Interfere: switch off tokens, tiles, the thumbnail or heads, and see what becomes of the answer.

import { chances } from "../model/sampling.js";
import { showBars } from "./bars.js";
import { Cells } from "./cells.js";
import { byId, element, fill, roving } from "./dom.js";

const CANDIDATES = 5;

export class WithoutStation {
  constructor(app) {
    this.app = app;
    const made = (id, thumbnail) =>
      new Cells(byId(id), {
        hover: (index) => app.point(index === null ? null : this.tokenAt(index, thumbnail)),
        press: (index, value) => this.toggle(this.tokenAt(index, thumbnail), value),
      });
    this.tiles = made("without-tiles", false);
    this.thumbnail = made("without-thumbnail", true);
    byId("without-ask").addEventListener("click", () => app.ask());
    byId("without-restore").addEventListener("click", () => {
      app.without.tokens.clear();
      app.without.heads.clear();
      app.tell("without");
      app.ask();
    });
  }

  update(topic) {
    const { app } = this;
    if (app.run === null) return;
    if (["run", "language", "theme"].includes(topic)) this.build();
    if (["run", "language", "theme", "without"].includes(topic)) this.show();
    if (["run", "done", "step", "language", "without", "picture"].includes(topic)) this.compare();
    if (topic === "pointed") this.showPointed();
  }

  tokenAt(index, thumbnail) {
    const { places } = this.app.run;
    const columns = thumbnail ? places.side : places.columns;
    return places.token(Math.floor(index / columns), index % columns, thumbnail);
  }

  /** One token off or on; -> what it is now. */
  toggle(token, value) {
    const { tokens } = this.app.without;
    const off = value ?? !tokens.has(token);
    if (off) tokens.add(token);
    else tokens.delete(token);
    this.app.tell("without");
    return off;
  }

  /** Some tokens off, or on again if they all are off. */
  toggleAll(list) {
    const { tokens } = this.app.without;
    const off = !list.every((token) => tokens.has(token));
    for (const token of list) {
      if (off) tokens.add(token);
      else tokens.delete(token);
    }
    this.app.tell("without");
  }

  build() {
    const { app } = this;
    const { places, canvas, steps, tiles } = app.run;
    byId("without-pictures").style.setProperty("--columns", places.columns);
    byId("without-pictures").style.setProperty("--side", places.side);
    this.tiles.show(places.rows, places.columns, app.words("without.paint"), small(canvas));
    byId("without-thumbnail-part").hidden = !places.hasThumbnail;
    if (places.hasThumbnail) {
      const name = app.words("without.thumbnail");
      this.thumbnail.show(places.side, places.side, name, small(canvas));
    }
    const { objects } = app.scene;
    byId("without-objects-part").hidden = objects.length === 0;
    this.groups = objects.map((one) => ({
      text: app.nameOf(one),
      list: places.under(app.scene.shareOf(one)),
      parent: byId("without-objects"),
    }));
    tiles.forEach((_, tile) => {
      const text =
        tile < places.cells
          ? app.words("without.tile", { tile: tile + 1 })
          : app.words("without.wholeThumbnail");
      this.groups.push({ text, list: places.tokensOf(tile), parent: byId("without-parts") });
    });
    for (const group of this.groups) {
      group.button = element("button", {
        type: "button",
        text: group.text,
        onclick: () => this.toggleAll(group.list),
      });
    }
    for (const parent of [byId("without-objects"), byId("without-parts")]) {
      fill(
        parent,
        ...this.groups.filter((one) => one.parent === parent).map(({ button }) => button),
      );
    }
    const { attention } = steps[0];
    const heads = attention[0].length;
    this.switches = attention.flatMap((_, layer) =>
      attention[layer].map((_, head) =>
        element("button", {
          type: "button",
          text: `${layer}.${head}`,
          "aria-label": app.words("without.head", { layer, head }),
          onclick: () => {
            const name = `${layer}.${head}`;
            if (!app.without.heads.delete(name)) app.without.heads.add(name);
            app.tell("without");
          },
        }),
      ),
    );
    byId("without-heads").style.setProperty("--heads", heads);
    byId("without-heads").setAttribute("aria-label", app.words("without.heads"));
    fill(byId("without-heads"), ...this.switches);
    roving(byId("without-heads"), this.switches, heads);
  }

  show() {
    const { app } = this;
    const { tokens, heads } = app.without;
    for (const [grid, thumbnail] of [
      [this.tiles, false],
      [this.thumbnail, true],
    ]) {
      grid.cells.forEach((cell, index) => {
        const token = this.tokenAt(index, thumbnail);
        const off = tokens.has(token);
        const { row, column } = app.run.places.position(token);
        cell.classList.toggle("off", off);
        cell.setAttribute("aria-selected", String(off));
        cell.setAttribute(
          "aria-label",
          app.words("without.cell", {
            row: row + 1,
            column: column + 1,
            state: app.words(`without.state.${off ? "off" : "on"}`),
          }),
        );
      });
    }
    for (const { button, list } of this.groups) {
      button.setAttribute("aria-pressed", String(list.every((token) => tokens.has(token))));
    }
    for (const button of this.switches) {
      button.setAttribute("aria-pressed", String(heads.has(button.textContent)));
    }
  }

  compare() {
    const { app } = this;
    const before = app.before;
    const after = app.run;
    const same =
      before !== null && before.question === after.question && before.canvas === after.canvas;
    byId("before").textContent = same ? before.answer : after.answer;
    this.bars("before-bars", same ? before : after);
    const isOff = !app.nothingIsAway(after);
    const wanted = !app.nothingIsAway(app);
    byId("after").textContent = isOff
      ? after.answer
      : app.words(wanted ? "without.pending" : "without.none");
    byId("after").classList.toggle("quiet", !isOff);
    byId("after-bars").hidden = !isOff;
    byId("after-bars").previousElementSibling.hidden = !isOff;
    if (isOff) this.bars("after-bars", after);
  }

  bars(id, run) {
    const { logits, id: chosen } = run.steps[0];
    const all = chances(logits, [], { temperature: 1, topP: 1, topK: 0, repetitionPenalty: 1 });
    const order = Array.from(all.keys()).sort((a, b) => all[b] - all[a]);
    const rows = order.slice(0, CANDIDATES).map((one) => ({
      text: this.app.texts[one],
      chance: all[one],
      chosen: one === chosen,
      off: false,
    }));
    showBars(byId(id), rows);
  }

  showPointed() {
    for (const [grid, thumbnail] of [
      [this.tiles, false],
      [this.thumbnail, true],
    ]) {
      grid.cells.forEach((cell, index) => {
        const here = this.app.pointed === this.tokenAt(index, thumbnail);
        cell.classList.toggle("pointed", here);
      });
    }
  }
}

/** A copy of at most 640 pixels a side, for the background of cells. */
function small(canvas) {
  const scale = Math.min(1, 640 / Math.max(canvas.width, canvas.height));
  const copy = document.createElement("canvas");
  copy.width = Math.max(1, Math.round(canvas.width * scale));
  copy.height = Math.max(1, Math.round(canvas.height * scale));
  copy.getContext("2d").drawImage(canvas, 0, 0, copy.width, copy.height);
  return copy;
}
