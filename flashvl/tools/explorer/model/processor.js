// The processor: a picture becomes pixels, what the tower takes.

import { Tensor } from "./tensor.js";

/**
 * Tiles {height, width, rgb} -> pixels (S, C, height, width).
 *
 * Scaled to 0..1, then less the mean and divided by the deviation of each channel.
 */
export function normalize(tiles, mean, std) {
  const { height, width } = tiles[0];
  const pixels = new Tensor([tiles.length, 3, height, width]); // (S, C, height, width)
  tiles.forEach(({ rgb }, s) => {
    for (let c = 0; c < 3; c++) {
      const [less, divisor] = [Math.fround(mean[c]), Math.fround(std[c])];
      const start = (s * 3 + c) * height * width;
      for (let i = 0; i < height * width; i++) {
        pixels.data[start + i] = Math.fround(Math.fround(rgb[i * 3 + c] / 255) - less) / divisor;
      }
    }
  });
  return pixels;
}
