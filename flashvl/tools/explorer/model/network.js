// The network of Flash-VL: tower, compressor and decoder, wired. Read `forward`: it is all of it.

import { AIMv2Encoder } from "./aimv2.js";
import { Compressor } from "./compressor.js";
import { Decoder } from "./decoder.js";
import { SigLIPEncoder } from "./siglip.js";

export const TOWERS = { aimv2: AIMv2Encoder, siglip: SigLIPEncoder };
export const ALL_THERE = { columns: new Set(), heads: new Set() };

/** For who does not want to see what passes between the parts. */
export function unwatched() {}

/** ids, pixels (S, C, height, width) of one picture -> logits (T, V). */
export class FlashVLModel {
  constructor(config, weights) {
    this.config = config;
    this.vision = new TOWERS[config.vision.architecture](config.vision, weights.at("vision"));
    this.compressor = new Compressor(config, weights.at("compressor"));
    this.decoder = new Decoder(config.decoder, weights.at("decoder"));
    // A network with parts that are not here would answer otherwise.
    const [unknown] = weights.unread;
    if (unknown !== undefined) throw new Error(`the page does not know the weights ${unknown}`);
  }

  /**
   * One pass over T tokens, some of which are places for the image tokens of one picture.
   *
   * `cache` holds the tokens before these and takes these up; `without` is what an experiment
   * takes away, see decoder.js; `watch(name, tensor)` is called with what passes between the
   * parts, by the names of the Python modules. Logits are those of the tokens from `first` on.
   */
  forward(ids, pixels, grid, { cache, without = ALL_THERE, watch = unwatched, first = 0 }) {
    let imageTokens = null;
    if (pixels !== null) {
      imageTokens = this.compress(this.vision.forward(pixels, watch), grid); // (S, tokens, D)
    }
    return this.read(ids, imageTokens, { cache, without, watch, first }); // (T - first, V)
  }

  /** features (S, N, vision width) -> image tokens (S, tokens, D), stitched as `config` says. */
  compress(features, grid, config = this.config) {
    return this.compressor.forward(features, grid, config);
  }

  /** `forward` for image tokens (S, tokens, D) that are there already, or null. */
  read(ids, imageTokens, { cache, without = ALL_THERE, watch = unwatched, first = 0 }) {
    const embeddings = this.decoder.embed(ids); // (T, D)
    if (imageTokens !== null) fillPlaces(embeddings, ids, imageTokens);
    const hidden = this.decoder.forward(embeddings, cache, without, watch); // (T, D)
    return this.decoder.head.forward(hidden.slice(first, ids.length)); // (T - first, V)
  }
}

/** Puts image tokens (S, tokens, D), in their order, into the places of embeddings (T, D). */
export function fillPlaces(embeddings, ids, imageTokens) {
  let next = 0;
  ids.forEach((id, t) => {
    if (id < 0) embeddings.row(t).set(imageTokens.row(next++));
  });
  if (next !== imageTokens.rows) {
    throw new Error(`there are ${next} places for ${imageTokens.rows} image tokens`);
  }
}
