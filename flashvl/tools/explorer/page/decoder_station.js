// The decoder: what each head reads, what each layer would say, and how the next token is chosen.

import { GREEDY } from "../model/generate.js";
import { chances } from "../model/sampling.js";
import { showBars } from "./bars.js";
import { stepButtons } from "./desk.js";
import { byId, css, element, fill, percent, rgbOf, roving, visible } from "./dom.js";
import { drawHeat } from "./drawing.js";
import { Heads } from "./heads.js";

const CANDIDATES = 8;
const MOST_READ = 6;
const BYTES = 4; // of a number in the cache

export class DecoderStation {
  constructor(app) {
    this.app = app;
    this.sampling = { ...GREEDY, doSample: true };
    this.seed = 0;
    this.heads = new Heads(
      byId("decoder-heads"),
      (key, values) => app.words(key, values),
      (layer, head) => app.choose(app.step, layer, head),
    );
    for (const [id, name] of [
      ["temperature", "temperature"],
      ["top-p", "topP"],
      ["top-k", "topK"],
    ]) {
      byId(id).addEventListener("input", ({ target }) => {
        this.sampling[name] = Number(target.value);
        this.showCandidates();
      });
    }
    byId("draw").addEventListener("click", () => this.draw());
  }

  update(topic) {
    const { app } = this;
    if (app.run === null) return;
    if (topic === "run") byId("drawn").textContent = "";
    if (["run", "step", "done", "chosen", "language"].includes(topic)) {
      fill(byId("decoder-steps"), ...stepButtons(app));
      roving(byId("decoder-steps"), [...byId("decoder-steps").children], app.run.steps.length);
      byId("decoder-steps").setAttribute("aria-label", app.words("decoder.step"));
    }
    if (!["run", "chosen", "language", "theme"].includes(topic)) return;
    this.showHeads();
    this.showReads();
    this.showLens();
    this.showCandidates();
    this.showCache();
  }

  showHeads() {
    const { app } = this;
    const { run, step } = app;
    const { attention } = run.steps[step];
    const heads = attention[0].length;
    const { places } = run;
    const base = app.fadedPicture();
    const read = attention.map((_, layer) =>
      attention[layer].map((_, head) => run.onPicture(step, layer, head)),
    );
    const most = Math.max(...read.flat().map(({ values }) => Math.max(...values)));
    this.heads.show({
      layers: attention.length,
      heads,
      most: most || 1,
      chosen: app.layer * heads + app.head,
      heats: (layer, head) => {
        const { values } = read[layer][head];
        const drawn = [{ base, values: places.laidOut(values), columns: places.columns }];
        if (places.hasThumbnail) {
          drawn.push({ base, values: places.laidOut(values, true), columns: places.side });
        }
        return drawn;
      },
      describe: (layer, head) => {
        const off = run.without.heads.has(`${layer}.${head}`);
        const picture = percent(read[layer][head].share);
        return {
          label: app.words("decoder.heat", {
            layer,
            head,
            picture,
            most: this.mostRead(layer, head)[0]?.name ?? "",
          }),
          caption: off ? app.words("decoder.off") : picture,
          off,
        };
      },
    });
  }

  /** The tokens that a head reads most: [{name, share, image}]. */
  mostRead(layer, head) {
    const { app } = this;
    const { run, step } = app;
    const row = run.steps[step].attention[layer][head];
    return Array.from(row.keys())
      .sort((a, b) => row[b] - row[a])
      .slice(0, MOST_READ)
      .filter((place) => row[place] > 0)
      .map((place) => {
        const { kind, text, image } = run.partAt(place);
        if (image === null) {
          return {
            name: `${visible(text)} (${app.words(`kind.${kind}`)})`,
            share: row[place],
            image,
          };
        }
        const nearest = run.tokens[image].words[app.language][0].text;
        const where = run.places.position(image);
        const spot = `${where.row + 1}:${where.column + 1}`;
        const name = `${app.words(`kind.${kind}`)} ${spot} “${nearest}”`;
        return { name, share: row[place], image };
      });
  }

  showReads() {
    const { app } = this;
    const { layer, head } = app;
    const items = this.mostRead(layer, head).map(({ name, share, image }) =>
      element(
        "li",
        {
          onpointerenter: () => app.point(image),
          onpointerleave: () => app.point(null),
        },
        element("span", { text: name }),
        element("b", { text: percent(share) }),
      ),
    );
    fill(
      byId("decoder-reads"),
      element("h3", { text: app.words("decoder.reads", { layer, head }) }),
      this.large(layer, head),
      element("ul", { class: "most" }, ...items),
    );
  }

  /** A head's attention on the picture and on its thumbnail, large. */
  large(layer, head) {
    const { run, step } = this.app;
    const { places } = run;
    const { values } = run.onPicture(step, layer, head);
    const most = Math.max(...values) || 1;
    const base = this.app.fadedPicture();
    const color = rgbOf(css("--accent"));
    const [tiles, thumbnail] = [element("canvas"), element("canvas")];
    drawHeat(tiles, base, places.laidOut(values), places.columns, most, color);
    if (places.hasThumbnail) {
      drawHeat(thumbnail, base, places.laidOut(values, true), places.side, most, color);
    }
    const shown = places.hasThumbnail ? [tiles, thumbnail] : [tiles];
    return element("div", { class: "large", "aria-hidden": "true" }, ...shown);
  }

  showLens() {
    const { app } = this;
    const { lenses, id } = app.run.steps[app.step];
    const rows = lenses.map((candidates, layer) =>
      element(
        "tr",
        {},
        element("th", { scope: "row", text: app.words("decoder.layer", { layer }) }),
        ...candidates.map(({ text, chance, id: one }) =>
          element(
            "td",
            { class: one === id ? "chosen" : null },
            element("span", { text: visible(text) }),
            element("small", { text: percent(chance) }),
          ),
        ),
      ),
    );
    fill(byId("decoder-lens"), ...rows);
  }

  showCandidates() {
    const { app, sampling } = this;
    byId("temperature-value").textContent = sampling.temperature.toFixed(1);
    byId("top-p-value").textContent = sampling.topP.toFixed(2);
    byId("top-k-value").textContent = sampling.topK;
    const { logits, id } = app.run.steps[app.step];
    const all = chances(logits, [], { ...sampling, topP: 1, topK: 0 });
    const kept = chances(logits, [], sampling);
    const order = Array.from(all.keys()).sort((a, b) => all[b] - all[a]);
    const rows = order.slice(0, CANDIDATES).map((one) => ({
      text: app.texts[one],
      chance: kept[one] > 0 ? kept[one] : all[one],
      chosen: one === id,
      off: kept[one] === 0,
    }));
    showBars(byId("decoder-candidates"), rows);
  }

  /** A whole answer, drawn; another one each time. */
  async draw() {
    this.seed += 1;
    const { app } = this;
    const sampling = { ...this.sampling, maxNewTokens: 32, seed: this.seed };
    const run = await app.askBeside({ sampling });
    if (run !== null) byId("drawn").textContent = `${app.words("decoder.drawn")} ${run.answer}`;
  }

  showCache() {
    const { app } = this;
    const { context, layers, keyValueHeads, headWidth } = app.config.decoder;
    const prompt = app.run.parts.length;
    const length = prompt + app.step;
    const bytes = length * layers * 2 * keyValueHeads * headWidth * BYTES;
    byId("cache")
      .querySelector(".prompt")
      .style.setProperty("width", `${(100 * prompt) / context}%`);
    byId("cache")
      .querySelector(".written")
      .style.setProperty("width", `${(100 * app.step) / context}%`);
    byId("cache-text").textContent = app.words("decoder.cache.text", {
      prompt,
      length,
      context,
      bytes: `${Math.round(bytes / 1000)} kB`,
    });
  }
}
