// The layers that towers, compressor and decoder share: linear maps and norms.

import { Tensor, linear, map, silu } from "./tensor.js";

/** (..., in) -> (..., out). */
export class Linear {
  constructor(weights) {
    this.weight = weights.get("weight"); // (out, in)
    this.bias = weights.get("bias"); // (out) or null
  }

  forward(x) {
    return linear(x, this.weight, this.bias);
  }
}

/** Root mean square norm, times its weight. (..., D) -> (..., D). */
export class RMSNorm {
  constructor(weights, eps) {
    this.weight = weights.get("weight"); // (D)
    this.eps = eps;
  }

  forward(x) {
    const D = x.width;
    const y = new Tensor(x.shape); // (..., D)
    for (let r = 0; r < x.rows; r++) {
      let squares = 0;
      for (let d = 0; d < D; d++) squares += x.data[r * D + d] ** 2;
      const scale = 1 / Math.sqrt(squares / D + this.eps);
      for (let d = 0; d < D; d++)
        y.data[r * D + d] = x.data[r * D + d] * scale * this.weight.data[d];
    }
    return y;
  }
}

/** Less the mean, divided by the deviation, times a weight, plus a bias. (..., D) -> (..., D). */
export class LayerNorm {
  constructor(weights, eps = 1e-5) {
    this.weight = weights.get("weight"); // (D)
    this.bias = weights.get("bias"); // (D)
    this.eps = eps;
  }

  forward(x) {
    const D = x.width;
    const y = new Tensor(x.shape); // (..., D)
    for (let r = 0; r < x.rows; r++) {
      const row = x.row(r);
      const mean = row.reduce((sum, value) => sum + value, 0) / D;
      const variance = row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / D;
      const scale = 1 / Math.sqrt(variance + this.eps);
      for (let d = 0; d < D; d++) {
        y.data[r * D + d] = (row[d] - mean) * scale * this.weight.data[d] + this.bias.data[d];
      }
    }
    return y;
  }
}

/** The gated MLP `down(silu(gate x) * up x)`. (..., D) -> (..., D). */
export class SwiGLU {
  constructor(weights) {
    this.gate = new Linear(weights.at("gate"));
    this.up = new Linear(weights.at("up"));
    this.down = new Linear(weights.at("down"));
  }

  forward(x) {
    const gated = map(this.gate.forward(x), silu); // (..., hidden width)
    const up = this.up.forward(x); // (..., hidden width)
    for (let i = 0; i < up.data.length; i++) up.data[i] *= gated.data[i];
    return this.down.forward(up); // (..., D)
  }
}
