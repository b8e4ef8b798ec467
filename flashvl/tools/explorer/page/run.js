// One question put to the model, and all that came back; and the worker that it runs in.

import { Places } from "./places.js";

/** What is known of a job so far. */
export class Run {
  constructor(job, canvas) {
    Object.assign(this, job);
    this.canvas = canvas; // the picture as it was
    [this.attention, this.steps] = [[], []];
    this.answer = "";
  }

  take(message) {
    if (message.kind === "tiles") {
      const { grid, tiles, core, margin, patch } = message;
      Object.assign(this, { grid, tiles, core, margin, patch });
    } else if (message.kind === "tile") {
      this.towerHeads = message.heads;
      this.attention[message.tile] = message.attention; // layers x (H, N, N)
    } else if (message.kind === "tokens") {
      this.tokens = message.tokens;
      const { side, tokenOrder, tileOrder } = message;
      this.places = new Places({ grid: this.grid, side, tokenOrder, tileOrder });
    } else if (message.kind === "prompt") {
      this.parts = message.parts;
      this.imagePlaces = this.parts.flatMap(({ image }, place) => (image === null ? [] : [place]));
    } else if (message.kind === "token") {
      this.steps.push(message);
      this.answer = message.answer;
    }
  }

  /** Attention of a step's head on the image tokens, by their number, and its share of all. */
  onPicture(step, layer, head) {
    const row = this.steps[step].attention[layer][head];
    const values = Float32Array.from(this.imagePlaces, (place) => row[place]);
    return { values, share: values.reduce((sum, value) => sum + value, 0) };
  }

  /** All tokens that a step's head could read, with what they are. */
  partAt(place) {
    if (place < this.parts.length) return this.parts[place];
    return { kind: "answer", text: this.steps[place - this.parts.length].text, image: null };
  }
}

/** The worker, and which run its messages belong to. */
export class Runner {
  /** `changed(run, message)` is called after each message of the newest run. */
  constructor({ script, data, weights, changed, opened, failed }) {
    const source = new Blob([script], { type: "text/javascript" });
    this.worker = new Worker(URL.createObjectURL(source));
    [this.number, this.current] = [0, null];
    this.worker.onmessage = ({ data: message }) => {
      if (message.kind === "opened") opened(message);
      else if (message.kind === "failed") this.fail(message.reason, failed);
      else if (message.number === this.number) {
        this.current.run.take(message);
        this.current.watch(this.current.run, message);
        if (message.kind === "done") this.current.resolve(this.current.run);
      }
    };
    this.worker.onerror = (event) => this.fail(event.message, failed);
    this.changed = changed;
    this.worker.postMessage({ kind: "open", ...data, weights }, [weights.buffer]);
  }

  /**
   * Puts a job to the model -> its run when it is done, or null if a newer one came.
   *
   * Unless `shown`, the page does not show it.
   */
  ask(job, canvas, shown = true) {
    this.current?.resolve(null);
    this.number += 1;
    const run = new Run({ ...job, number: this.number }, canvas);
    const { picture, stitching, question, sampling, without } = job;
    return new Promise((resolve) => {
      this.current = { run, resolve, watch: shown ? this.changed : () => {} };
      this.worker.postMessage({
        kind: "ask",
        number: this.number,
        picture,
        stitching,
        question,
        sampling,
        without: { tokens: [...without.tokens], heads: [...without.heads] },
      });
    });
  }

  fail(reason, failed) {
    this.current?.resolve(null);
    this.current = null;
    failed(reason);
  }
}
