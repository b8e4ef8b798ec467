// The SigLIP2 tower of the Static models. Its pooling head is never called, as in Python.

import { LayerNorm, Linear } from "./layers.js";
import { PatchEmbedding, attendInTiles, middlePositions, runLayers } from "./patches.js";
import { add, map, tanhGelu } from "./tensor.js";

/** pixels (S, C, height, width) -> features (S, N, D), patches row by row. */
export class SigLIPEncoder {
  constructor(config, weights) {
    this.featureLayer = config.featureLayer;
    this.patchEmbedding = new PatchEmbedding(weights.at("patch_embedding"));
    this.positions = weights.get("positions"); // (patches, D)
    this.layers = Array.from(
      { length: config.layers },
      (_, index) => new SigLIPLayer(config, weights.at("layers").at(index)),
    );
    this.norm = new LayerNorm(weights.at("norm"), config.eps);
  }

  forward(pixels, watch) {
    let x = this.patchEmbedding.forward(pixels); // (S, N, D)
    x = add(x, middlePositions(this.positions, x.shape[1]));
    return runLayers(x, this.layers, this.norm, this.featureLayer, watch);
  }
}

/** x + attention(norm x), then x + mlp(norm x). (S, N, D) -> (S, N, D). */
class SigLIPLayer {
  constructor(config, weights) {
    this.name = weights.name;
    this.attentionNorm = new LayerNorm(weights.at("attention_norm"), config.eps);
    this.attention = new SigLIPAttention(config, weights.at("attention"));
    this.mlpNorm = new LayerNorm(weights.at("mlp_norm"), config.eps);
    this.mlp = new SigLIPMLP(weights.at("mlp"));
  }

  forward(x, watch) {
    x = add(x, this.attention.forward(this.attentionNorm.forward(x), watch));
    x = add(x, this.mlp.forward(this.mlpNorm.forward(x)));
    watch(this.name, x);
    return x;
  }
}

/** Every patch attends to every patch of the picture. (S, N, D) -> (S, N, D). */
class SigLIPAttention {
  constructor(config, weights) {
    this.name = weights.name;
    this.heads = config.heads;
    this.query = new Linear(weights.at("query"));
    this.key = new Linear(weights.at("key"));
    this.value = new Linear(weights.at("value"));
    this.output = new Linear(weights.at("output"));
  }

  forward(x, watch) {
    const q = this.query.forward(x); // (S, N, D)
    const k = this.key.forward(x); // (S, N, D)
    const v = this.value.forward(x); // (S, N, D)
    return this.output.forward(attendInTiles(q, k, v, this.heads, this.name, watch)); // (S, N, D)
  }
}

/** Two linear maps around a tanh-GELU. (S, N, D) -> (S, N, D). */
class SigLIPMLP {
  constructor(weights) {
    this.up = new Linear(weights.at("up"));
    this.down = new Linear(weights.at("down"));
  }

  forward(x) {
    return this.down.forward(map(this.up.forward(x), tanhGelu));
  }
}
