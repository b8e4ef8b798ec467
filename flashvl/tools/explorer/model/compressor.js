// The compressor: stitching, pixel shuffle, and three linear maps into the decoder's width.

import { LayerNorm, Linear } from "./layers.js";
import { Tensor, gelu, map } from "./tensor.js";

export const STITCHING = ["trim", "mean", "none", "pool"];

/** features (S, N, vision width) of one picture of a grid -> tokens (S, T, decoder width). */
export class Compressor {
  constructor(config, weights) {
    this.shuffle = config.compressor.shuffle;
    this.tokenOrder = config.compressor.tokenOrder;
    this.norm = new LayerNorm(weights.at("norm"));
    this.expand = new Linear(weights.at("expand"));
    this.hidden = new Linear(weights.at("hidden"));
    this.output = new Linear(weights.at("output"));
  }

  /** `config`'s tiler may differ from call to call: no weight knows how tiles are stitched. */
  forward(features, grid, config) {
    let x = this.reduce(features, grid, config); // (S, T, shuffle * shuffle * D)
    x = map(this.expand.forward(this.norm.forward(x)), gelu); // (S, T, hidden width)
    return this.output.forward(map(this.hidden.forward(x), gelu)); // (S, T, decoder width)
  }

  /** Stitching, then pixel shuffle, before any weight. (S, N, D) -> (S, T, factor² * D). */
  reduce(features, grid, config) {
    const { stitching } = config.tiler;
    const margin = config.stitchedMargin;
    if (!STITCHING.includes(stitching)) throw new Error(`there is no stitching mode ${stitching}`);
    const [S, N, D] = features.shape;
    const side = Math.sqrt(N);
    let x = features.reshape(S, side, side, D); // (S, side, side, D)
    if (stitching === "mean" && margin > 0) {
      x = averageMargins(x, grid, margin, config.tiler.order(grid)); // (S, core, core, D)
    } else if (stitching === "pool") {
      const core = Math.floor(config.tiler.coreSize / config.vision.patchSize);
      x = averageWindows(x, core); // (S, core, core, D)
    } else {
      x = trimMargins(x, margin); // (S, core, core, D)
    }
    x = pixelShuffle(x, this.shuffle); // (S, rows, columns, factor * factor * D)
    if (this.tokenOrder === "columns") {
      x = transposed(x); // (S, columns, rows, factor * factor * D)
    }
    return x.reshape(S, x.shape[1] * x.shape[2], x.shape[3]); // (S, T, factor * factor * D)
  }
}

/**
 * The stitching modes `trim` and `none`: the core of each tile goes on.
 *
 * (S, side, side, D) -> (S, side - 2 * margin, side - 2 * margin, D).
 */
export function trimMargins(features, margin) {
  const [S, side, , D] = features.shape;
  const core = side - 2 * margin;
  const trimmed = new Tensor([S, core, core, D]);
  for (let r = 0; r < trimmed.rows; r++) {
    const [s, y, x] = [Math.floor(r / core ** 2), Math.floor(r / core) % core, r % core];
    trimmed.row(r).set(features.row((s * side + margin + y) * side + margin + x));
  }
  return trimmed;
}

/**
 * The stitching mode `pool`: all patches are averaged down to the core's size.
 *
 * Along a side, place i is the mean of the patches from i * side / core, rounded down, to
 * (i + 1) * side / core, rounded up. (S, side, side, D) -> (S, core, core, D).
 */
export function averageWindows(features, core) {
  const [S, side, , D] = features.shape;
  const pooled = new Tensor([S, core, core, D]);
  const ends = (i) => [Math.floor((i * side) / core), Math.ceil(((i + 1) * side) / core)];
  for (let r = 0; r < pooled.rows; r++) {
    const [s, v, u] = [Math.floor(r / core ** 2), Math.floor(r / core) % core, r % core];
    const [[top, bottom], [left, right]] = [ends(v), ends(u)];
    const out = pooled.row(r);
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        const one = features.row((s * side + y) * side + x);
        for (let d = 0; d < D; d++) out[d] += one[d] / ((bottom - top) * (right - left));
      }
    }
  }
  return pooled;
}

/**
 * The stitching mode `mean`: a core token becomes the mean of all that saw its place.
 *
 * A thumbnail has no neighbors and is trimmed; `order` is that of the tiles, see TilerConfig.
 * (S, side, side, D) of one picture -> (S, core, core, D).
 */
export function averageMargins(features, [rows, columns], margin, order) {
  const [S, side, , D] = features.shape;
  const core = side - 2 * margin;
  const width = columns * core + 2 * margin;
  const total = new Tensor([rows * core + 2 * margin, width, D]);
  const count = new Uint32Array(total.rows);
  for (let r = 0; r < S * side ** 2; r++) {
    const [s, y, x] = [Math.floor(r / side ** 2), Math.floor(r / side) % side, r % side];
    const tile = order[s];
    if (tile === rows * columns) continue; // the thumbnail
    const top = Math.floor(tile / columns) * core;
    const place = (top + y) * width + (tile % columns) * core + x;
    const [sum, one] = [total.row(place), features.row(r)];
    for (let d = 0; d < D; d++) sum[d] += one[d];
    count[place] += 1;
  }
  const mean = trimMargins(features, margin); // (S, core, core, D), of the thumbnail its own
  for (let r = 0; r < mean.rows; r++) {
    const [s, y, x] = [Math.floor(r / core ** 2), Math.floor(r / core) % core, r % core];
    const tile = order[s];
    if (tile === rows * columns) continue;
    const top = Math.floor(tile / columns) * core + margin;
    const place = (top + y) * width + (tile % columns) * core + margin + x;
    const [out, sum] = [mean.row(r), total.row(place)];
    for (let d = 0; d < D; d++) out[d] = sum[d] / count[place];
  }
  return mean; // (S, core, core, D)
}

/**
 * factor x factor neighbors become one token, channel blocks (0, 0), (0, 1), (1, 0), (1, 1).
 *
 * (S, rows * factor, columns * factor, D) -> (S, rows, columns, factor * factor * D).
 */
export function pixelShuffle(x, factor) {
  const [S, height, width, D] = x.shape;
  const [rows, columns] = [height / factor, width / factor];
  const y = new Tensor([S, rows, columns, factor * factor * D]);
  for (let r = 0; r < x.rows; r++) {
    const [s, v, u] = [Math.floor(r / (height * width)), Math.floor(r / width) % height, r % width];
    const place = (s * rows + Math.floor(v / factor)) * columns + Math.floor(u / factor);
    y.row(place).set(x.row(r), ((v % factor) * factor + (u % factor)) * D);
  }
  return y;
}

/** (S, rows, columns, D) -> (S, columns, rows, D). */
function transposed(x) {
  const [S, rows, columns, D] = x.shape;
  const y = new Tensor([S, columns, rows, D]);
  for (let r = 0; r < x.rows; r++) {
    const [s, v, u] = [
      Math.floor(r / (rows * columns)),
      Math.floor(r / columns) % rows,
      r % columns,
    ];
    y.row((s * columns + u) * rows + v).set(x.row(r));
  }
  return y;
}
