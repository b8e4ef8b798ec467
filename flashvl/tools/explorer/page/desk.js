// The desk: the picture to draw on, the question and the answer.

import { byId, element, fill, roving, visible } from "./dom.js";
import { COLORS, EXAMPLES, GROUNDS, SHAPES, outline } from "./scene.js";

const STEP = 0.02; // of the picture, for an arrow key

export class Desk {
  constructor(app) {
    this.app = app;
    this.selected = null;
    this.canvas = app.scene.canvas;
    this.canvas.id = "picture";
    this.canvas.setAttribute("role", "img");
    byId("stage").prepend(this.canvas);
    this.overlay = byId("overlay");
    this.listen();
  }

  listen() {
    const { app, canvas } = this;
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      const question = byId("question").value.trim();
      if (question === "") return;
      app.question = question;
      app.ask();
    });
    byId("without-notice")
      .querySelector("button")
      .addEventListener("click", () => this.restore());
    let drag = null;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      const [x, y] = at(event);
      const found = app.scene.at(x * canvas.width, y * canvas.height);
      this.select(found);
      if (found === null) return;
      canvas.setPointerCapture(event.pointerId);
      drag = { dx: found.x - x, dy: found.y - y, moved: false };
      app.point(null);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      if (drag !== null) {
        this.move(x + drag.dx - this.selected.x, y + drag.dy - this.selected.y);
        drag.moved = true;
        return;
      }
      const onThing = app.scene.at(x * canvas.width, y * canvas.height) !== null;
      canvas.style.setProperty("cursor", onThing ? "grab" : "default");
      if (app.run === null || !app.pictureSent) return;
      const { places } = app.run;
      const [row, column] = [Math.floor(y * places.rows), Math.floor(x * places.columns)];
      const inside = row >= 0 && row < places.rows && column >= 0 && column < places.columns;
      app.point(inside ? places.token(row, column) : null);
    });
    canvas.addEventListener("pointerleave", () => app.point(null));
    const drop = () => {
      if (drag?.moved) app.pictureChanged();
      drag = null;
    };
    canvas.addEventListener("pointerup", drop);
    canvas.addEventListener("pointercancel", drop);
    const stage = byId("stage");
    stage.addEventListener("dragover", (event) => event.preventDefault());
    stage.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files.length > 0) this.openFile(event.dataTransfer.files[0]);
    });
    byId("file").addEventListener("change", ({ target }) => {
      if (target.files.length > 0) this.openFile(target.files[0]);
      target.value = "";
    });
    byId("size").addEventListener("input", ({ target }) =>
      this.change({ size: Number(target.value) }),
    );
    byId("digits").addEventListener("input", ({ target }) => {
      target.value = target.value.replace(/\D/g, "");
      if (target.value !== "") this.change({ digits: target.value });
    });
    byId("remove").addEventListener("click", () => this.remove());
  }

  update(topic) {
    if (topic === "language") this.translate();
    if (topic === "language" || topic === "picture") this.showObjects();
    if (["picture", "asked", "done"].includes(topic)) {
      byId("desk").setAttribute("aria-busy", String(topic !== "done"));
    }
    if (topic === "asked") {
      byId("question").value = this.app.question;
      byId("error").hidden = true;
    }
    if (topic === "progress") this.showProgress(this.app.progress);
    if (["run", "step", "done", "chosen", "language"].includes(topic)) this.showAnswer();
    if (topic !== "progress" && topic !== "asked") this.drawOverlay();
  }

  translate() {
    const { app } = this;
    const button = (text, pressed, onclick, ...more) =>
      element("button", { type: "button", "aria-pressed": pressed, onclick }, ...more, text);
    fill(
      byId("examples"),
      ...Object.keys(EXAMPLES).map((name) =>
        button(app.words(`desk.example.${name}`), null, () => this.show(name)),
      ),
      button(app.words("desk.file"), null, () => byId("file").click()),
    );
    fill(
      byId("shapes"),
      ...[...SHAPES, "number"].map((shape) =>
        element(
          "button",
          {
            type: "button",
            class: "icon",
            onclick: () => this.add(shape),
            title: app.words(`name.${shape}`),
            "aria-label": `${app.words("desk.add")}: ${app.words(`name.${shape}`)}`,
          },
          shape === "number" ? "42" : icon(shape),
        ),
      ),
    );
    fill(
      byId("grounds"),
      ...Object.entries(GROUNDS).map(([name, color]) =>
        swatch(color, app.words(`name.${name}`), false, () => {
          app.scene.ground = name;
          app.scene.photo = null;
          app.scene.draw();
          app.pictureChanged();
        }),
      ),
    );
    fill(
      byId("suggestions"),
      ...app.words("questions").map((question) =>
        button(question, null, () => {
          app.question = question;
          app.ask();
        }),
      ),
    );
    byId("question").value = app.question;
    byId("answer-tokens").setAttribute("aria-label", app.words("desk.answer.help"));
  }

  show(name) {
    this.selected = null;
    this.app.scene.show(EXAMPLES[name], "light");
    this.app.pictureChanged();
  }

  async openFile(file) {
    const { app } = this;
    byId("desk").setAttribute("aria-busy", "true");
    try {
      app.scene.showPhoto(await createImageBitmap(file));
    } catch {
      byId("desk").setAttribute("aria-busy", "false");
      byId("error").hidden = false;
      byId("error").textContent = app.words("error.file");
      return;
    }
    this.selected = null;
    app.pictureChanged();
  }

  add(shape) {
    const unused = Object.keys(COLORS).find(
      (color) => !this.app.scene.objects.some((one) => one.color === color),
    );
    this.selected = this.app.scene.add(shape, unused ?? "red");
    this.app.pictureChanged();
  }

  remove() {
    this.app.scene.remove(this.selected);
    this.selected = null;
    this.app.pictureChanged();
    byId("objects").querySelector("button")?.focus();
  }

  select(one) {
    this.selected = one;
    this.showObjects();
    this.drawOverlay();
  }

  move(dx, dy) {
    const { selected } = this;
    selected.x = Math.min(Math.max(selected.x + dx, 0), 1);
    selected.y = Math.min(Math.max(selected.y + dy, 0), 1);
    this.app.scene.draw();
    this.drawOverlay();
  }

  change(values) {
    Object.assign(this.selected, values);
    this.app.scene.draw();
    this.app.pictureChanged();
  }

  restore() {
    this.app.without.tokens.clear();
    this.app.without.heads.clear();
    this.app.tell("without");
    this.app.ask();
  }

  /** The things of the picture as buttons, and what can be changed of the chosen one. */
  showObjects() {
    const { app, selected } = this;
    const { objects, photo, canvas } = app.scene;
    byId("stage").style.setProperty("--ratio", canvas.width / canvas.height);
    const hadFocus = byId("objects").contains(document.activeElement);
    const buttons = objects.map((one) =>
      element(
        "button",
        {
          type: "button",
          "aria-pressed": String(one === selected),
          onclick: () => this.select(one === this.selected ? null : one),
          onkeydown: (event) => this.key(event, one),
        },
        one.shape === "number" ? null : icon(one.shape, COLORS[one.color]),
        app.nameOf(one),
      ),
    );
    fill(byId("objects"), ...buttons);
    if (hadFocus && selected !== null) buttons[objects.indexOf(selected)]?.focus();
    byId("object").hidden = selected === null;
    if (selected !== null) {
      fill(
        byId("colors"),
        ...Object.entries(COLORS).map(([name, color]) =>
          swatch(color, app.words(`name.${name}`), selected.color === name, () =>
            this.change({ color: name }),
          ),
        ),
      );
      byId("size").value = selected.size;
      byId("digits-tool").hidden = selected.shape !== "number";
      if (byId("digits").value !== selected.digits) byId("digits").value = selected.digits;
    }
    const named = objects.map((one) => app.nameOf(one)).join(", ");
    const ground = app.words(photo === null ? "desk.nothing" : "desk.photo");
    canvas.setAttribute(
      "aria-label",
      app.words("desk.picture", {
        width: canvas.width,
        height: canvas.height,
        objects: named === "" ? ground : named,
      }),
    );
  }

  key(event, one) {
    const moves = {
      ArrowLeft: [-STEP, 0],
      ArrowRight: [STEP, 0],
      ArrowUp: [0, -STEP],
      ArrowDown: [0, STEP],
    };
    const grows = { "+": 1.05, "=": 1.05, "-": 1 / 1.05 };
    if (!(event.key in moves) && !(event.key in grows) && event.key !== "Delete") return;
    event.preventDefault();
    event.stopPropagation();
    this.selected = one;
    if (event.key === "Delete") this.remove();
    else if (event.key in grows) {
      this.change({ size: Math.min(Math.max(one.size * grows[event.key], 0.2), 0.8) });
    } else {
      this.move(...moves[event.key]);
      this.app.pictureChanged();
    }
  }

  showProgress({ run, message }) {
    const progress = byId("progress");
    progress.hidden = false;
    let [share, text] = [0.9, this.app.words("busy.answer")];
    if (message.kind === "tile") {
      share = (0.7 * (message.index + 1)) / message.of;
      text = this.app.words("busy.tile", { index: message.index + 1, of: message.of });
    } else if (message.kind === "tiles") {
      [share, text] = [0, this.app.words("busy.tile", { index: 1, of: message.tiles.length })];
    } else if (message.kind === "prompt" || message.kind === "tokens") {
      [share, text] = [0.75, this.app.words("busy.prompt")];
    } else if (message.kind === "done") progress.hidden = run.number === this.app.runner.number;
    progress.querySelector(".bar > div").style.setProperty("width", `${share * 100}%`);
    progress.querySelector("p").textContent = text;
  }

  showAnswer() {
    const { app } = this;
    const { run } = app;
    if (run === null) return;
    byId("answer").hidden = false;
    byId("status").textContent = "";
    byId("answer-text").textContent = run.answer === "" ? "…" : run.answer;
    fill(byId("answer-tokens"), ...stepButtons(app));
    roving(byId("answer-tokens"), [...byId("answer-tokens").children], run.steps.length);
    const { seconds } = run;
    byId("time").textContent =
      seconds === undefined ? "" : app.words("desk.time", { seconds: seconds.toFixed(1) });
    const [tokens, heads] = [run.without.tokens.size, run.without.heads.size];
    byId("without-notice").hidden = tokens + heads === 0;
    byId("without-notice").querySelector("span").textContent = app.words("desk.without", {
      tokens,
      heads,
    });
  }

  /** Over the picture: the chosen thing, what is switched off, and the token that is pointed at. */
  drawOverlay() {
    const { app, overlay, canvas } = this;
    const box = canvas.getBoundingClientRect();
    const scale = Math.max(1, window.devicePixelRatio);
    [overlay.width, overlay.height] = [box.width * scale, box.height * scale];
    const pen = overlay.getContext("2d");
    pen.scale(overlay.width, overlay.height);
    const style = getComputedStyle(document.documentElement);
    const accent = style.getPropertyValue("--accent");
    const frame = ([left, top, width, height], color, thick) => {
      pen.save();
      pen.setTransform(1, 0, 0, 1, 0, 0);
      pen.strokeStyle = color;
      pen.lineWidth = thick * scale;
      const [w, h] = [overlay.width, overlay.height];
      pen.strokeRect(left * w, top * h, width * w, height * h);
      pen.restore();
    };
    if (this.selected !== null) {
      const [left, top, width, height] = app.scene.shareOf(this.selected);
      frame([left - 0.01, top - 0.01, width + 0.02, height + 0.02], "#ffffff", 4);
      frame([left - 0.01, top - 0.01, width + 0.02, height + 0.02], accent, 2);
    }
    if (app.run === null || !app.pictureSent) return;
    const { places } = app.run;
    for (const token of app.without.tokens) {
      if (places.position(token).thumbnail) continue;
      const [left, top, width, height] = places.box(token);
      pen.fillStyle = style.getPropertyValue("--surface");
      pen.globalAlpha = 0.8;
      pen.fillRect(left, top, width, height);
      pen.globalAlpha = 1;
    }
    if (app.pointed !== null && app.pointed !== undefined) {
      frame(places.box(app.pointed), "#ffffff", 5);
      frame(places.box(app.pointed), accent, 2.5);
    }
  }
}

/** The tokens of the answer as buttons that choose them. */
export function stepButtons(app) {
  const { run } = app;
  return run.steps.map(({ text, stops, id }, step) =>
    element(
      "button",
      {
        type: "button",
        class: stops ? "token stop" : "token",
        title: `id ${id}`,
        "aria-pressed": String(step === app.step),
        onclick: () => app.choose(step, app.layer, app.head),
      },
      stops ? app.words("desk.end") : visible(text),
    ),
  );
}

function icon(shape, color = "currentColor") {
  const svg = element("svg", { viewBox: "0 0 20 20", "aria-hidden": "true", class: "shape" });
  svg.append(
    element("path", { d: outline(shape, 2, 2, 16, 16), fill: color, "fill-rule": "evenodd" }),
  );
  return svg;
}

function swatch(color, name, pressed, onclick) {
  return element("button", {
    type: "button",
    class: "swatch",
    title: name,
    "aria-label": name,
    "aria-pressed": String(pressed),
    style: { "--swatch": color },
    onclick,
  });
}
