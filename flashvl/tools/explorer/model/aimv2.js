// The AIMv2 tower: tiles in, patch features out.

import { Linear, RMSNorm, SwiGLU } from "./layers.js";
import { PatchEmbedding, attendInTiles, middlePositions, runLayers } from "./patches.js";
import { Tensor, add } from "./tensor.js";

/** pixels (S, C, height, width) -> features (S, N, D), patches row by row. */
export class AIMv2Encoder {
  constructor(config, weights) {
    this.featureLayer = config.featureLayer;
    this.patchEmbedding = new PatchEmbedding(weights.at("patch_embedding"));
    this.patchNorm = new RMSNorm(weights.at("patch_norm"), config.eps);
    this.positions = weights.get("positions"); // (1, patches, D)
    this.layers = Array.from(
      { length: config.layers },
      (_, index) => new AIMv2Layer(config, weights.at("layers").at(index)),
    );
    this.norm = new RMSNorm(weights.at("norm"), config.eps);
  }

  forward(pixels, watch) {
    let x = this.patchNorm.forward(this.patchEmbedding.forward(pixels)); // (S, N, D)
    x = add(x, middlePositions(this.positions, x.shape[1]));
    return runLayers(x, this.layers, this.norm, this.featureLayer, watch);
  }
}

/** x + attention(norm x), then x + mlp(norm x). (S, N, D) -> (S, N, D). */
class AIMv2Layer {
  constructor(config, weights) {
    this.name = weights.name;
    this.attentionNorm = new RMSNorm(weights.at("attention_norm"), config.eps);
    this.attention = new AIMv2Attention(config, weights.at("attention"));
    this.mlpNorm = new RMSNorm(weights.at("mlp_norm"), config.eps);
    this.mlp = new SwiGLU(weights.at("mlp"));
  }

  forward(x, watch) {
    x = add(x, this.attention.forward(this.attentionNorm.forward(x), watch));
    x = add(x, this.mlp.forward(this.mlpNorm.forward(x)));
    watch(this.name, x);
    return x;
  }
}

/** Every patch attends to every patch of its own tile. (S, N, D) -> (S, N, D). */
class AIMv2Attention {
  constructor(config, weights) {
    this.name = weights.name;
    this.heads = config.heads;
    this.qkv = new Linear(weights.at("qkv"));
    this.output = new Linear(weights.at("output"));
  }

  forward(x, watch) {
    const [q, k, v] = split(this.qkv.forward(x)); // 3 x (S, N, D)
    return this.output.forward(attendInTiles(q, k, v, this.heads, this.name, watch)); // (S, N, D)
  }
}

/** (S, N, 3 * D) -> 3 x (S, N, D). */
function split(qkv) {
  const [S, N, wide] = qkv.shape;
  const D = wide / 3;
  return [0, 1, 2].map((part) => {
    const one = new Tensor([S, N, D]);
    for (let r = 0; r < one.rows; r++) {
      one.row(r).set(qkv.row(r).subarray(part * D, (part + 1) * D));
    }
    return one;
  });
}
