// The model at work, off the page's thread. Messages come in as jobs and go out step by step.

import { STITCHING } from "./compressor.js";
import { FlashVLConfig } from "./config.js";
import { generate } from "./generate.js";
import { lens, nearestWords, partsOfPrompt, spelled, wholeWords } from "./inside.js";
import { FlashVLModel } from "./network.js";
import { normalize } from "./processor.js";
import { encodeMessages } from "./prompt.js";
import { concatenate } from "./tensor.js";
import { tileImage } from "./tiling.js";
import { Tokenizer } from "./tokenizer.js";
import { Weights } from "./weights.js";

const NEAREST = 3; // words of an image token
const LENS = 3; // candidates of a layer

/** One model and the picture that it has read last. */
export class Session {
  /** `post` takes the messages to the page; `pause` lets newer jobs come in between. */
  constructor({ config, tokenizer, stopIds, weights }, post, pause) {
    this.config = FlashVLConfig.fromDict(config);
    this.tokenizer = new Tokenizer(tokenizer);
    this.stopIds = new Set(stopIds);
    this.model = new FlashVLModel(this.config, Weights.fromBytes(weights));
    this.words = wholeWords(this.tokenizer);
    [this.post, this.pause] = [post, pause];
    [this.newest, this.newPicture] = [0, null];
    this.readPictures = new Map(); // of one picture, by the margin that the tower saw
  }

  /** A job has come: it is the newest, and its picture counts even if it never gets its turn. */
  announce({ number, picture }) {
    this.newest = number;
    if (picture !== null) this.newPicture = picture;
  }

  /**
   * A job: {number, picture, stitching, question, sampling, without}.
   *
   * `picture` is null for the one before, `without` {tokens, heads}: image tokens by their number
   * and heads as "layer.head". What it finds is posted as it is found; a job that is not the
   * newest any more ends early.
   */
  async run(job) {
    this.announce(job);
    if (this.newPicture !== null) {
      [this.picture, this.newPicture] = [this.newPicture, null];
      this.readPictures.clear();
    }
    const read = await this.readPicture(job);
    if (read === null) return;
    const config = this.config.stitchedBy(job.stitching);
    const { imageTokens, nearest } = this.compress(read, config);
    this.post({
      kind: "tokens",
      number: job.number,
      side: config.tokenSide,
      tileOrder: config.tiler.order(read.grid),
      tokenOrder: config.compressor.tokenOrder,
      tokens: nearest,
    });
    const ids = encodeMessages(
      [{ role: "user", content: job.question }],
      this.tokenizer,
      config.prompt,
      imageTokens.shape[0],
      config.tokensPerTile,
    );
    const parts = partsOfPrompt(ids, this.tokenizer, config, read.grid);
    this.post({ kind: "prompt", number: job.number, parts });
    await this.answer(job, ids, imageTokens, parts);
  }

  /** A read picture -> {imageTokens (S, tokens, D), nearest: their words}; once for each mode. */
  compress({ features, grid, compressed }, config) {
    const { stitching } = config.tiler;
    if (!compressed.has(stitching)) {
      const imageTokens = this.model.compress(features, grid, config); // (S, tokens, D)
      const { embedding } = this.model.decoder;
      const nearest = nearestWords(imageTokens, embedding, this.words, NEAREST);
      compressed.set(stitching, { imageTokens, nearest });
    }
    return compressed.get(stitching);
  }

  /** Tiles through the tower, one at a time -> {features, grid}, or null if a newer job came. */
  async readPicture({ number, stitching }) {
    const { tiler } = this.config.stitchedBy(stitching);
    const known = this.readPictures.get(tiler.seenMargin);
    const cut = known ?? tileImage(this.picture, tiler);
    const read = { ...cut, features: null, attention: [], compressed: new Map() };
    const { coreSize: core, seenMargin: margin } = tiler;
    const patch = this.config.vision.patchSize;
    // The page numbers tiles row by row, and the thumbnail after them.
    const order = tiler.order(cut.grid);
    const tiles = order.map((_, tile) => cut.tiles[order.indexOf(tile)]);
    this.post({ kind: "tiles", number, grid: cut.grid, tiles, core, margin, patch });
    const features = [];
    for (let index = 0; index < cut.tiles.length; index++) {
      if (known === undefined) {
        await this.pause();
        if (number !== this.newest) return null;
        const one = [cut.tiles[index]];
        const pixels = normalize(one, tiler.mean, tiler.std); // (1, C, height, width)
        const layers = [];
        const watch = (name, tensor) => name.endsWith(".weights") && layers.push(tensor);
        features.push(this.model.vision.forward(pixels, watch)); // (1, N, vision width)
        read.attention.push(layers.map(({ data }) => data)); // layers x (H, N, N)
      }
      const attention = (known ?? read).attention[index];
      const { heads } = this.config.vision;
      const tile = order[index];
      this.post({ kind: "tile", number, tile, index, of: cut.tiles.length, heads, attention });
    }
    if (known !== undefined) return known;
    read.features = concatenate(features); // (S, N, vision width)
    this.readPictures.set(tiler.seenMargin, read);
    return read;
  }

  async answer(job, ids, imageTokens, parts) {
    const places = parts.flatMap(({ image }, place) => (image === null ? [] : [place]));
    const without = {
      columns: new Set(job.without.tokens.map((token) => places[token])),
      heads: new Set(job.without.heads),
    };
    const { model, tokenizer, stopIds } = this;
    let seen = new Map();
    const watch = (name, tensor) => seen.set(name, tensor);
    await this.pause();
    const answer = [];
    const sampling = job.sampling;
    for (const step of generate(model, ids, imageTokens, { sampling, stopIds, without, watch })) {
      if (job.number !== this.newest) return;
      if (!step.stops) answer.push(step.id);
      this.post({
        kind: "token",
        number: job.number,
        id: step.id,
        text: spelled(step.id, tokenizer),
        stops: step.stops,
        logits: step.logits,
        ...this.insideOf(seen),
        answer: tokenizer.decode(answer),
      });
      seen = new Map();
      await this.pause();
    }
    this.post({ kind: "done", number: job.number, answer: tokenizer.decode(answer) });
  }

  /** Of the last token of a pass: attention, layers x heads x columns, and each layer's lens. */
  insideOf(seen) {
    const { layers, heads } = this.config.decoder;
    const attention = [];
    const lenses = [];
    for (let layer = 0; layer < layers; layer++) {
      const name = `decoder.layers.${layer}`;
      const weights = seen.get(`${name}.attention.weights`); // (H, T, seen + T)
      const tokens = weights.shape[1];
      attention.push(
        Array.from({ length: heads }, (_, head) => weights.row((head + 1) * tokens - 1).slice()),
      );
      const hidden = seen.get(name); // (T, D)
      lenses.push(lens(this.model.decoder, hidden.slice(tokens - 1, tokens), this.tokenizer, LENS));
    }
    return { attention, lenses };
  }
}

/** The worker's side of the page: one message to open the model, then jobs. */
export function serve(scope) {
  let session = null;
  const channel = new MessageChannel();
  let resume = () => {};
  channel.port1.onmessage = () => resume();
  const pause = () =>
    new Promise((resolve) => {
      resume = resolve;
      channel.port2.postMessage(null);
    });
  const fail = (number, error) =>
    scope.postMessage({ kind: "failed", number, reason: String(error?.message ?? error) });
  let running = Promise.resolve();
  scope.onmessage = ({ data }) => {
    if (data.kind === "open") {
      try {
        session = new Session(data, (message) => scope.postMessage(message), pause);
        const { vocabulary } = session.config.decoder;
        const texts = Array.from({ length: vocabulary }, (_, id) => spelled(id, session.tokenizer));
        scope.postMessage({ kind: "opened", texts, modes: STITCHING });
      } catch (error) {
        fail(0, error);
      }
      return;
    }
    session.announce(data); // a job that is under way sees it at its next pause
    running = running
      .then(() => data.number === session.newest && session.run(data))
      .catch((error) => fail(data.number, error));
  };
}

if (typeof WorkerGlobalScope !== "undefined") serve(self);
