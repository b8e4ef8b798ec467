// A picture in another size, byte for byte as Pillow resizes it.
// A picture is {height, width, rgb}, rgb (height, width, 3) bytes.

const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const A = -0.5; // of the bicubic filter

// By Pillow's number: how far the filter reaches at the size of the source, and its curve.
const FILTERS = {
  1: [3, (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0)], // Lanczos
  2: [1, (x) => Math.max(0, 1 - Math.abs(x))], // bilinear
  3: [2, bicubic],
  4: [0.5, (x) => (-0.5 < x && x <= 0.5 ? 1 : 0)], // box
  5: [1, (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0)], // Hamming
};
const NEAREST = 0;
const PRECISION_BITS = 22; // weights are whole numbers of 2 ** -22, as in Pillow

function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * A : 0;
}

/**
 * `resample` is Pillow's number of the filter. What comes after the first direction is rounded to
 * bytes, so that the order counts: with `heightFirst` as in Pillow versions that begin with the
 * height where it shrinks by more than twice as many pixels as the width.
 */
export function resize(image, height, width, resample, heightFirst) {
  if (resample === NEAREST) return nearest(image, height, width);
  const [shrinks, narrows] = [image.height - height, image.width - width];
  const first = heightFirst && shrinks > 0 && shrinks > 2 * narrows;
  if (first) image = resizeColumns(image, height, resample);
  if (image.width !== width) image = resizeRows(image, width, resample);
  return resizeColumns(image, height, resample);
}

function resizeColumns(image, height, resample) {
  if (image.height === height) return image;
  return transposed(resizeRows(transposed(image), height, resample));
}

/** Each row becomes `width` pixels; antialiased: a smaller picture's pixels are weighted means. */
function resizeRows({ height, width: before, rgb }, width, resample) {
  const weights = filterWeights(before, width, ...FILTERS[resample]);
  const out = new Uint8ClampedArray(height * width * 3);
  for (let x = 0; x < width; x++) {
    const { start, factors } = weights[x];
    for (let y = 0; y < height; y++) {
      for (let c = 0; c < 3; c++) {
        let sum = 1 << (PRECISION_BITS - 1);
        for (let k = 0; k < factors.length; k++) {
          sum += rgb[(y * before + start + k) * 3 + c] * factors[k];
        }
        out[(y * width + x) * 3 + c] = Math.floor(sum / 2 ** PRECISION_BITS);
      }
    }
  }
  return { height, width, rgb: out };
}

/** For each pixel of the new row: where its window of the old one starts, and the weights. */
function filterWeights(before, after, reach, curve) {
  const scale = before / after;
  const stretch = Math.max(scale, 1);
  const support = reach * stretch;
  return Array.from({ length: after }, (_, place) => {
    const center = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(before, Math.trunc(center + support + 0.5));
    const values = [];
    for (let x = start; x < end; x++) values.push(curve((x - center + 0.5) / stretch));
    const total = values.reduce((sum, value) => sum + value, 0);
    const whole = (value) => Math.trunc(value * 2 ** PRECISION_BITS + Math.sign(value) * 0.5);
    return { start, factors: values.map((value) => whole(total === 0 ? value : value / total)) };
  });
}

function transposed({ height, width, rgb }) {
  const out = new Uint8ClampedArray(rgb.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let c = 0; c < 3; c++) out[(x * height + y) * 3 + c] = rgb[(y * width + x) * 3 + c];
    }
  }
  return { height: width, width: height, rgb: out };
}

function nearest(image, height, width) {
  const [down, right] = [places(image.height, height), places(image.width, width)];
  const out = new Uint8ClampedArray(height * width * 3);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (down[y] * image.width + right[x]) * 3;
      out.set(image.rgb.subarray(from, from + 3), (y * width + x) * 3);
    }
  }
  return { height, width, rgb: out };
}

/** The old pixel for each new one, step by step as Pillow adds them up, rounding included. */
function places(before, after) {
  const step = before / after;
  let place = step * 0.5;
  return Array.from({ length: after }, () => {
    const whole = Math.trunc(place);
    place += step;
    return Math.min(whole, before - 1);
  });
}
