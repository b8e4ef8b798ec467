// The Qwen2 decoder: embeddings in, hidden states out, with a cache.

import { Linear, RMSNorm, SwiGLU } from "./layers.js";
import { Tensor, add, addRows, dot, softmax } from "./tensor.js";

/**
 * embeddings (T, D) -> hidden states (T, D) after the last norm.
 *
 * The T tokens follow those already in the cache. What an experiment takes away is in `without`:
 * columns (a Set of places in the text) that nothing attends to, and heads (a Set of "layer.head")
 * whose output is 0.
 */
export class Decoder {
  constructor(config, weights) {
    this.config = config;
    this.embedding = weights.at("embedding").get("weight"); // (V, D)
    this.layers = Array.from(
      { length: config.layers },
      (_, index) => new DecoderLayer(config, index, weights.at("layers").at(index)),
    );
    this.norm = new RMSNorm(weights.at("norm"), config.eps);
    this.head = new Linear(weights.at(config.tiedHead ? "embedding" : "head"));
  }

  /** ids -> (T, D); an id below 0, a place of an image token, gives the row of id 0. */
  embed(ids) {
    const x = new Tensor([ids.length, this.embedding.width]); // (T, D)
    ids.forEach((id, t) => x.row(t).set(this.embedding.row(Math.max(id, 0))));
    return x;
  }

  forward(embeddings, cache, without, watch) {
    const tokens = embeddings.rows;
    const rotation = ropeRotation(this.config, cache.length, tokens); // 2 x (T, head width / 2)
    let x = embeddings;
    for (const layer of this.layers) x = layer.forward(x, rotation, cache, without, watch);
    cache.advance(tokens);
    return this.norm.forward(x); // (T, D)
  }
}

/** x + attention(norm x), then x + mlp(norm x). (T, D) -> (T, D). */
class DecoderLayer {
  constructor(config, index, weights) {
    this.name = weights.name;
    this.attentionNorm = new RMSNorm(weights.at("attention_norm"), config.eps);
    this.attention = new DecoderAttention(config, index, weights.at("attention"));
    this.mlpNorm = new RMSNorm(weights.at("mlp_norm"), config.eps);
    this.mlp = new SwiGLU(weights.at("mlp"));
  }

  forward(x, rotation, cache, without, watch) {
    const normed = this.attentionNorm.forward(x); // (T, D)
    x = add(x, this.attention.forward(normed, rotation, cache, without, watch));
    x = add(x, this.mlp.forward(this.mlpNorm.forward(x)));
    watch(this.name, x);
    return x;
  }
}

/** Causal attention in which H / K query heads share one key/value head. (T, D) -> (T, D). */
class DecoderAttention {
  constructor(config, index, weights) {
    this.name = weights.name;
    this.index = index;
    this.heads = config.heads;
    this.headWidth = config.headWidth;
    this.query = new Linear(weights.at("query"));
    this.key = new Linear(weights.at("key"));
    this.value = new Linear(weights.at("value"));
    this.output = new Linear(weights.at("output"));
  }

  forward(x, rotation, cache, without, watch) {
    const q = rotate(this.query.forward(x), rotation, this.headWidth); // (T, H * head width)
    const k = rotate(this.key.forward(x), rotation, this.headWidth); // (T, K * head width)
    const v = this.value.forward(x); // (T, K * head width)
    cache.append(this.index, k, v);
    const [weights, out] = this.attend(q, cache, without); // (H, T, seen + T), (T, H * head width)
    watch(`${this.name}.weights`, weights);
    return this.output.forward(out); // (T, D)
  }

  /** q (T, H * head width) -> weights (H, T, seen + T), and what is read (T, H * head width). */
  attend(q, cache, without) {
    const [H, T, width, seen] = [this.heads, q.rows, this.headWidth, cache.length];
    const [keys, values] = [cache.keys[this.index].data, cache.values[this.index].data];
    const shared = H / cache.keys[this.index].shape[0]; // query heads of a key/value head
    const weights = new Tensor([H, T, seen + T]);
    const out = new Tensor([T, H * width]);
    const hidden = Uint8Array.from({ length: seen + T }, (_, c) =>
      without.columns.has(c) ? 1 : 0,
    );
    for (let h = 0; h < H; h++) {
      if (without.heads.has(`${this.index}.${h}`)) continue;
      const start = Math.floor(h / shared) * cache.capacity;
      for (let t = 0; t < T; t++) {
        const from = t * H * width + h * width;
        const row = weights.row(h * T + t).subarray(0, seen + t + 1); // what comes later stays 0
        for (let c = 0; c < row.length; c++) {
          const score = dot(q.data, from, keys, (start + c) * width, width) / Math.sqrt(width);
          row[c] = hidden[c] ? -Infinity : score;
        }
        softmax(row);
        addRows(out.data, from, row, values, start * width, width);
      }
    }
    return [weights, out];
  }
}

/** Cosine and sine of the angles of T positions from `first` on: 2 x (T, head width / 2). */
export function ropeRotation(config, first, tokens) {
  const half = config.headWidth / 2;
  const [cosine, sine] = [new Tensor([tokens, half]), new Tensor([tokens, half])];
  for (let i = 0; i < half; i++) {
    // In float32, as Python: positions in the hundreds are sensitive to a frequency's last bits.
    const power = Math.fround(config.ropeTheta ** Math.fround((2 * i) / config.headWidth));
    const frequency = Math.fround(1 / power);
    for (let t = 0; t < tokens; t++) {
      const angle = Math.fround((first + t) * frequency);
      cosine.data[t * half + i] = Math.cos(angle);
      sine.data[t * half + i] = Math.sin(angle);
    }
  }
  return [cosine, sine];
}

/** Turns the pairs (i, i + half) of each head by their angle. (T, heads * head width), same out. */
export function rotate(x, [cosine, sine], headWidth) {
  const half = headWidth / 2;
  const y = new Tensor(x.shape);
  for (let t = 0; t < x.rows; t++) {
    for (let start = t * x.width; start < (t + 1) * x.width; start += headWidth) {
      for (let i = 0; i < half; i++) {
        const [first, second] = [x.data[start + i], x.data[start + half + i]];
        const [c, s] = [cosine.data[t * half + i], sine.data[t * half + i]];
        y.data[start + i] = first * c - second * s;
        y.data[start + half + i] = second * c + first * s;
      }
    }
  }
  return y;
}
