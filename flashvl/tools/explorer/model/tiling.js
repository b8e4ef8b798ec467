// The tiler: which tiles a picture is cut into. Pure functions, no weights.

import { resize } from "./image.js";

/** A picture -> {tiles, grid}: tiles {height, width, rgb} in the decoder's order. */
export function tileImage(image, config) {
  const grid = GRID_RULES[config.grid](image.height, image.width, config.coreSize, config.maxTiles);
  const tiles = cutTiles(canvasOf(image, grid, config), grid, config.coreSize);
  const order = config.order(grid);
  if (order.length > tiles.length) {
    tiles.push(...cutTiles(canvasOf(image, [1, 1], config), [1, 1], config.coreSize));
  }
  return { tiles: order.map((number) => tiles[number]), grid };
}

/**
 * The rule `aspect`: at most `maxTiles` cells, the closest to the picture's aspect ratio.
 *
 * Of two grids equally close the larger is taken if the picture has more than half of its pixels.
 */
export function chooseGrid(height, width, coreSize, maxTiles) {
  let best = [1, 1];
  let bestDifference = Infinity;
  for (const [rows, columns] of gridsOf(maxTiles)) {
    const difference = Math.abs(columns / rows - width / height);
    const enoughPixels = height * width > 0.5 * rows * columns * coreSize ** 2;
    if (difference < bestDifference || (difference === bestDifference && enoughPixels)) {
      [best, bestDifference] = [[rows, columns], difference];
    }
  }
  return best;
}

/** The rule `resolution`: the grid that shows the most pixels, then the one with least waste. */
export function chooseGridByResolution(height, width, coreSize, maxTiles) {
  let [best, bestShown, bestWaste] = [null, -Infinity, -Infinity];
  for (const [rows, columns] of gridsOf(maxTiles)) {
    const [across, down] = [columns * coreSize, rows * coreSize];
    const scale = Math.min(across / width, down / height);
    const fitted = Math.trunc(width * scale) * Math.trunc(height * scale);
    const shown = Math.min(fitted, width * height);
    const waste = shown - across * down; // below 0, so that less of it is more
    if (shown > bestShown || (shown === bestShown && waste > bestWaste)) {
      [best, bestShown, bestWaste] = [[rows, columns], shown, waste];
    }
  }
  return best;
}

/**
 * The rule `slices`: about as many cells as the picture has pixels for.
 *
 * The number of cells that it fills, rounded up, one more and one fewer are tried, though never a
 * single cell where it fills more; of their grids the one is taken whose aspect ratio is closest,
 * in the logarithm.
 */
export function chooseGridBySlices(height, width, coreSize, maxTiles) {
  const wanted = Math.min(Math.ceil((height * width) / coreSize ** 2), maxTiles);
  if (wanted <= 1) return [1, 1];
  const ratio = logarithm(width / height);
  let [best, bestDifference] = [null, Infinity];
  for (const count of [wanted - 1, wanted, wanted + 1]) {
    if (count <= 1 || count > maxTiles) continue;
    for (let columns = 1; columns <= count; columns++) {
      if (count % columns !== 0) continue;
      const rows = count / columns;
      const difference = Math.abs(logarithm(columns / rows) - ratio);
      if (difference < bestDifference) [best, bestDifference] = [[rows, columns], difference];
    }
  }
  return best;
}

export const GRID_RULES = {
  aspect: chooseGrid,
  resolution: chooseGridByResolution,
  slices: chooseGridBySlices,
};

/** Every [rows, columns] of at most so many cells, the smaller ones first. */
function gridsOf(maxTiles) {
  const grids = [];
  for (let rows = 1; rows <= maxTiles; rows++) {
    for (let columns = 1; columns <= Math.floor(maxTiles / rows); columns++) {
      grids.push([rows, columns]);
    }
  }
  return grids.sort((a, b) => a[0] * a[1] - b[0] * b[1] || a[0] - b[0]);
}

const LOG_BITS = 160n; // of a logarithm, after the point

/**
 * The natural logarithm of a positive number, rounded to the nearest.
 *
 * Where a picture lies halfway between two grids the last bit decides. Python's logarithms are
 * the nearest there; those of Math.log are not, and differ from browser to browser.
 */
export function logarithm(value) {
  const one = 1n << LOG_BITS;
  let rest = BigInt(value * 2 ** 100) << (LOG_BITS - 100n); // whole, for a value from 2 ** -48 on
  let doublings = 0n;
  for (; rest >= 2n * one; rest /= 2n) doublings += 1n;
  for (; rest < one; rest *= 2n) doublings -= 1n;
  const sum = logarithmOfFixed(rest) + doublings * logarithmOfFixed(2n * one);
  return Number(sum) / 2 ** Number(LOG_BITS);
}

/** For 1 to 2, by the series 2 * (z + z³ / 3 + z⁵ / 5 + ...) of z = (x - 1) / (x + 1). */
function logarithmOfFixed(x) {
  const one = 1n << LOG_BITS;
  const z = ((x - one) << LOG_BITS) / (x + one);
  let [sum, power] = [0n, z];
  for (let n = 1n; power !== 0n; n += 2n) {
    sum += power / n;
    power = (((power * z) >> LOG_BITS) * z) >> LOG_BITS;
  }
  return 2n * sum;
}

/** The picture resized to the cores of `grid` and padded by the margin on all four sides. */
export function canvasOf(image, [rows, columns], config) {
  const [height, width] = [rows * config.coreSize, columns * config.coreSize];
  const resized = resize(image, height, width, config.resample, config.heightFirst);
  return pad(resized, config.seenMargin, config.padding);
}

/** A padded canvas -> tiles, one at every core; what lies around the cores is the margin. */
export function cutTiles(canvas, [rows, columns], coreSize) {
  const height = canvas.height - (rows - 1) * coreSize;
  const width = canvas.width - (columns - 1) * coreSize;
  const tiles = [];
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++)
      tiles.push(crop(canvas, r * coreSize, c * coreSize, height, width));
  }
  return tiles;
}

function crop(image, top, left, height, width) {
  const rgb = new Uint8ClampedArray(height * width * 3);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * image.width + left) * 3;
    rgb.set(image.rgb.subarray(start, start + width * 3), y * width * 3);
  }
  return { height, width, rgb };
}

// Which pixel stands at a place outside of 0 to size - 1, in NumPy's words; null: black.
const PADDINGS = {
  constant: (place, size) => (place < 0 || place >= size ? null : place),
  edge: (place, size) => Math.min(Math.max(place, 0), size - 1),
  reflect: (place, size) => folded(place, size, 2 * (size - 1), 0),
  symmetric: (place, size) => folded(place, size, 2 * size, 1),
};

function folded(place, size, period, twice) {
  if (period === 0) return 0;
  const rest = ((place % period) + period) % period;
  return rest < size ? rest : period - rest - twice;
}

/** `margin` pixels more on each side. */
export function pad(image, margin, padding) {
  const [height, width] = [image.height + 2 * margin, image.width + 2 * margin];
  const rgb = new Uint8ClampedArray(height * width * 3);
  const source = PADDINGS[padding];
  for (let y = 0; y < height; y++) {
    const v = source(y - margin, image.height);
    for (let x = 0; x < width; x++) {
      const u = source(x - margin, image.width);
      if (u === null || v === null) continue;
      const from = (v * image.width + u) * 3;
      rgb.set(image.rgb.subarray(from, from + 3), (y * width + x) * 3);
    }
  }
  return { height, width, rgb };
}
