// The key/value cache: what the decoder remembers of the tokens that it has seen.

import { Tensor } from "./tensor.js";

/** Keys and values of every layer, each (K, capacity, head width), filled from the left. */
export class KVCache {
  constructor(config, capacity) {
    const shape = [config.keyValueHeads, capacity, config.headWidth];
    this.keys = Array.from({ length: config.layers }, () => new Tensor(shape));
    this.values = Array.from({ length: config.layers }, () => new Tensor(shape));
    this.capacity = capacity;
    this.length = 0;
  }

  /** Stores a layer's keys and values (T, K * head width) after the filled part. */
  append(layer, keys, values) {
    const [K, capacity, width] = this.keys[layer].shape;
    if (this.length + keys.rows > capacity) throw new Error(`the cache holds ${capacity} tokens`);
    for (let t = 0; t < keys.rows; t++) {
      for (let k = 0; k < K; k++) {
        const place = k * capacity + this.length + t;
        const part = [k * width, (k + 1) * width];
        this.keys[layer].row(place).set(keys.row(t).subarray(...part));
        this.values[layer].row(place).set(values.row(t).subarray(...part));
      }
    }
  }

  /** Counts T tokens as seen, after every layer has stored them. */
  advance(tokens) {
    this.length += tokens;
  }
}
