// What both towers do with patches: embed them, place them, attend, and pass through layers.

import { Tensor, addRows, dot, linear, softmax } from "./tensor.js";

/** One linear map from the pixels of a patch to a token. (S, C, height, width) -> (S, N, D). */
export class PatchEmbedding {
  constructor(weights) {
    this.weight = weights.get("weight"); // (D, C, patch, patch)
    this.bias = weights.get("bias"); // (D)
  }

  forward(pixels) {
    const [width, channels, patch] = this.weight.shape;
    const patches = cutPatches(pixels, patch); // (S, N, C * patch * patch)
    const weight = this.weight.reshape(width, channels * patch * patch); // (D, C * patch * patch)
    return linear(patches, weight, this.bias); // (S, N, D)
  }
}

/** (S, C, rows * patch, columns * patch) -> (S, rows * columns, C * patch * patch). */
export function cutPatches(pixels, patch) {
  const [S, C, height, width] = pixels.shape;
  const [rows, columns] = [height / patch, width / patch];
  const cut = new Tensor([S, rows * columns, C * patch * patch]);
  let place = 0;
  for (let s = 0; s < S; s++) {
    for (let n = 0; n < rows * columns; n++) {
      const [top, left] = [Math.floor(n / columns) * patch, (n % columns) * patch];
      for (let c = 0; c < C; c++) {
        for (let y = 0; y < patch; y++) {
          const start = ((s * C + c) * height + top + y) * width + left;
          cut.data.set(pixels.data.subarray(start, start + patch), place);
          place += patch;
        }
      }
    }
  }
  return cut;
}

/** The middle square of learned positions. (N, D) -> (patches, D). */
export function middlePositions(positions, patches) {
  const D = positions.width;
  const [side, wanted] = [Math.sqrt(positions.rows), Math.sqrt(patches)];
  if (wanted > side) throw new Error(`a tile of ${wanted} x ${wanted} patches; known: ${side}`);
  const start = (side - wanted) / 2;
  const middle = new Tensor([patches, D]);
  for (let n = 0; n < patches; n++) {
    const from =
      (Math.floor(start) + Math.floor(n / wanted)) * side + Math.floor(start) + (n % wanted);
    middle.row(n).set(positions.row(from));
  }
  return middle;
}

/**
 * Every patch attends to every patch of its own tile. q, k, v: (S, N, D) -> (S, N, D).
 *
 * `watch` is given the weights (S, H, N, N): whose row says where a patch looks.
 */
export function attendInTiles(q, k, v, heads, name, watch) {
  const [S, N, D] = q.shape;
  const width = D / heads;
  const weights = new Tensor([S, heads, N, N]);
  const out = new Tensor([S, N, D]);
  for (let s = 0; s < S; s++) {
    for (let h = 0; h < heads; h++) {
      for (let n = 0; n < N; n++) {
        const from = (s * N + n) * D + h * width;
        const row = weights.row((s * heads + h) * N + n); // (N)
        for (let m = 0; m < N; m++) {
          row[m] = dot(q.data, from, k.data, (s * N + m) * D + h * width, width) / Math.sqrt(width);
        }
        softmax(row);
        addRows(out.data, from, row, v.data, s * N * D + h * width, width, D);
      }
    }
  }
  watch(`${name}.weights`, weights);
  return out;
}

/** All layers and the last norm, or (`featureLayer` >= 0) the bare output of that layer. */
export function runLayers(x, layers, norm, featureLayer, watch) {
  const used = featureLayer >= 0 ? layers.slice(0, featureLayer + 1) : layers;
  for (const layer of used) x = layer.forward(x, watch);
  return featureLayer >= 0 ? x : norm.forward(x);
}
