// The guided tour: six stops, each of which sets the page up for what it tells.

import { byId, percent } from "./dom.js";
import { EXAMPLES } from "./scene.js";

export class Tour {
  constructor(app) {
    this.app = app;
    this.stop = 0; // 1 to 6; 0: no tour
    this.stops = [
      { section: "tiles", show: () => this.together() },
      { section: "tower", show: () => this.patch() },
      { section: "tokens", show: () => {} },
      { section: "strip", show: () => {} },
      { section: "decoder", show: () => this.head() },
      { section: "without", show: () => this.erase() },
    ];
    byId("tour-start").addEventListener("click", () => this.go(1));
    byId("tour-end").addEventListener("click", () => this.end());
    byId("tour-previous").addEventListener("click", () => this.go(this.stop - 1));
    byId("tour-next").addEventListener("click", () => this.go(this.stop + 1));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("hashchange", () => this.start(location.hash));
  }

  /** Goes to the stop of an address such as #tour-3 -> whether there is one. */
  start(hash) {
    const stop = Number(/^#tour-([1-6])$/.exec(hash)?.[1] ?? 0);
    if (stop > 0 && stop !== this.stop) this.go(stop);
    return stop > 0;
  }

  update(topic) {
    if (topic === "language" && this.stop > 0) this.write();
  }

  key(event) {
    const inField = /^(INPUT|TEXTAREA)$/.test(event.target.tagName);
    if (this.stop === 0 || inField || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "ArrowRight" || event.key === "PageDown") this.go(this.stop + 1);
    else if (event.key === "ArrowLeft" || event.key === "PageUp") this.go(this.stop - 1);
    else if (event.key === "Escape") this.end();
    else return;
    event.preventDefault();
  }

  async go(stop) {
    if (stop < 1) return;
    if (stop > this.stops.length) {
      this.end();
      return;
    }
    this.stop = stop;
    this.app.desk.select(null);
    location.hash = `tour-${stop}`;
    document.body.classList.add("touring");
    byId("tour").hidden = false;
    const { section, show } = this.stops[stop - 1];
    for (const one of this.stops)
      byId(one.section).classList.toggle("here", one.section === section);
    this.write();
    await this.prepare();
    if (this.stop !== stop) return;
    await show();
    if (this.stop !== stop) return;
    this.write();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    byId(section).scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
    byId("tour-title").focus({ preventScroll: true });
    document.body.dataset.stop = stop; // it stands
  }

  end() {
    this.stop = 0;
    history.replaceState(null, "", location.pathname + location.search);
    document.body.classList.remove("touring");
    delete document.body.dataset.stop;
    byId("tour").hidden = true;
    for (const { section } of this.stops) byId(section).classList.remove("here");
    byId("tour-start").focus();
  }

  write() {
    const { app } = this;
    const [title, text] = app.words("tour")[this.stop - 1];
    const share = this.stop === 5 && app.run ? percent(this.onStar(app.layer, app.head)) : "";
    const { layers, heads } = app.config.vision;
    const [before, after] = [app.before?.answer ?? "…", app.run?.answer ?? "…"];
    const values = { share, heads: layers * heads, before, after };
    byId("tour-title").textContent = title;
    byId("tour-text").textContent = text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
    byId("tour-count").textContent = app.words("tour.count", {
      number: this.stop,
      of: this.stops.length,
    });
    byId("tour-previous").disabled = this.stop === 1;
  }

  /** The circle, the star and the question about it; nothing is asked that is known already. */
  async prepare() {
    const { app } = this;
    const { scene, run } = app;
    const [question] = app.words("questions");
    const ready =
      app.pictureSent &&
      app.onTour === scene.objects &&
      run !== null &&
      run.question === question &&
      run.stitching === app.config.tiler.stitching &&
      app.nothingIsAway(run) &&
      app.nothingIsAway(app);
    if (ready) return;
    if (app.onTour !== scene.objects) {
      scene.show(EXAMPLES.star, "light");
      app.onTour = scene.objects;
      app.pictureSent = false;
      app.tell("picture");
    }
    app.without.tokens.clear();
    app.without.heads.clear();
    app.stitching = app.config.tiler.stitching;
    app.question = question;
    await app.ask();
  }

  together() {
    const { tiles } = this.app;
    tiles.apart = 0;
    tiles.draw();
    setTimeout(() => tiles.slide(1), 600);
  }

  /** The patch in the middle of the star. */
  patch() {
    const { tower } = this.app;
    const star = this.app.scene.objects.find(({ shape }) => shape === "star");
    const { grid, core, margin, patch } = this.app.run;
    const [x, y] = [star.x * grid[1] * core, star.y * grid[0] * core];
    tower.tile = Math.floor(y / core) * grid[1] + Math.floor(x / core);
    const within = [y, x].map((place) => Math.floor(((place % core) + margin) / patch));
    tower.choose(within[0] * tower.side + within[1]);
  }

  /** The head that reads the star most. */
  head() {
    const { app } = this;
    const { attention } = app.run.steps[0];
    const all = attention.flatMap((heads, layer) => heads.map((_, head) => [layer, head]));
    const best = all.reduce((one, other) =>
      this.onStar(...other) > this.onStar(...one) ? other : one,
    );
    app.choose(0, ...best);
  }

  /** The share of a head's attention, for the first token of the answer, that lies on the star. */
  onStar(layer, head) {
    const { values } = this.app.run.onPicture(0, layer, head);
    return this.tokensOfStar().reduce((sum, token) => sum + values[token], 0);
  }

  tokensOfStar() {
    const { scene, run } = this.app;
    return run.places.under(scene.shareOf(scene.objects.find(({ shape }) => shape === "star")));
  }

  async erase() {
    const { app } = this;
    for (const token of this.tokensOfStar()) app.without.tokens.add(token);
    app.tell("without");
    await app.ask();
  }
}
