// Pictures on canvases: faded ones, and heat on them.

import { css, rgbOf } from "./dom.js";

export function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

/** {height, width, rgb} -> a canvas. */
export function canvasFrom({ height, width, rgb }) {
  const canvas = canvasOf(width, height);
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[i * 4 + c] = rgb[i * 3 + c];
    image.data[i * 4 + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** A canvas -> {height, width, rgb}; what is transparent lies on white. */
export function pictureFrom(canvas) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const rgb = new Uint8ClampedArray(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) rgb[i * 3 + c] = data[i * 4 + c];
  }
  return { height, width, rgb };
}

/**
 * The picture in gray, near to the color of the page, so that heat is seen on any of them; on a
 * dark page what is light becomes dark.
 */
export function faded(source, width = 320) {
  const height = Math.max(1, Math.round((width * source.height) / source.width));
  const canvas = canvasOf(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(source, 0, 0, width, height);
  const image = pen.getImageData(0, 0, width, height);
  const surface = rgbOf(css("--surface"));
  const strength = 0.26;
  const dark = surface[1] < 128;
  for (let i = 0; i < image.data.length; i += 4) {
    const light = 0.3 * image.data[i] + 0.59 * image.data[i + 1] + 0.11 * image.data[i + 2];
    const gray = dark ? 255 - light : light;
    for (let c = 0; c < 3; c++) {
      image.data[i + c] = surface[c] * (1 - strength) + gray * strength;
    }
  }
  pen.putImageData(image, 0, 0);
  return canvas;
}

/**
 * Squares of heat on a faded picture: values (rows * columns), `most` is full strength.
 *
 * By the square root, so that what is weak is seen at all. `color` is [red, green, blue].
 */
export function drawHeat(canvas, base, values, columns, most, [r, g, b]) {
  const rows = values.length / columns;
  [canvas.width, canvas.height] = [base.width, base.height];
  const pen = canvas.getContext("2d");
  pen.drawImage(base, 0, 0);
  const [width, height] = [base.width / columns, base.height / rows];
  values.forEach((value, place) => {
    const alpha = Math.sqrt(Math.min(value / most, 1)) * 0.92;
    if (alpha < 0.02) return;
    pen.fillStyle = `rgba(${r}, ${g}, ${b}, ${alpha})`;
    const [x, y] = [(place % columns) * width, Math.floor(place / columns) * height];
    const [left, top] = [Math.round(x), Math.round(y)];
    pen.fillRect(left, top, Math.round(x + width) - left, Math.round(y + height) - top);
  });
}
