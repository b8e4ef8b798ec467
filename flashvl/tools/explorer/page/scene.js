// The picture that a visitor makes: shapes and a number on a ground or on a picture from a file.

import { canvasOf } from "./drawing.js";

export const SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"];
// One usual value of each color that nano knows; see flashvl/nano/world/things.py.
export const COLORS = {
  red: "#dc143c",
  green: "#228b22",
  blue: "#1e64dc",
  yellow: "#ffd700",
  orange: "#ff8c00",
  purple: "#800080",
  black: "#141414",
  white: "#f5f5f5",
};
export const GROUNDS = { light: "#e9e6df", gray: "#a9b0b4", dark: "#39424a" };
export const SIZE = [480, 288];
export const LARGEST = 1024; // pixels of a side of a picture from a file

const object = (shape, color, x, y, size, digits = "") => ({ shape, color, x, y, size, digits });

// x, y: the middle; size: the longer side, of a number its font's; in parts of the shorter side.
export const EXAMPLES = {
  star: [object("circle", "red", 0.27, 0.55, 0.42), object("star", "blue", 0.72, 0.45, 0.46)],
  number: [
    object("square", "green", 0.2, 0.5, 0.4),
    object("number", "black", 0.66, 0.52, 0.5, "204"),
  ],
  four: [
    object("ring", "orange", 0.17, 0.28, 0.36),
    object("triangle", "purple", 0.5, 0.3, 0.36),
    object("cross", "red", 0.82, 0.72, 0.36),
    object("square", "blue", 0.36, 0.74, 0.34),
  ],
};

export class Scene {
  /** `digits` is the strip of the ten digits, white on black, of a font of `digitSize` pixels. */
  constructor(digits, digitSize) {
    [this.digits, this.digitSize] = [digits, digitSize];
    this.canvas = canvasOf(...SIZE);
    this.show(EXAMPLES.star, "light");
  }

  show(objects, ground) {
    this.objects = objects.map((one) => ({ ...one }));
    [this.ground, this.photo] = [ground, null];
    [this.canvas.width, this.canvas.height] = SIZE;
    this.draw();
  }

  /** A picture from a file as the ground; `photo` is an ImageBitmap. */
  showPhoto(photo) {
    const scale = Math.min(1, LARGEST / Math.max(photo.width, photo.height));
    this.canvas.width = Math.max(1, Math.round(photo.width * scale));
    this.canvas.height = Math.max(1, Math.round(photo.height * scale));
    [this.objects, this.photo] = [[], photo];
    this.draw();
  }

  add(shape, color) {
    const place = 0.3 + 0.1 * (this.objects.length % 5);
    const digits = shape === "number" ? "42" : "";
    this.objects.push(object(shape, color, place, place, shape === "number" ? 0.5 : 0.42, digits));
    this.draw();
    return this.objects[this.objects.length - 1];
  }

  remove(one) {
    this.objects = this.objects.filter((other) => other !== one);
    this.draw();
  }

  get unit() {
    return Math.min(this.canvas.width, this.canvas.height);
  }

  /** left, top, width, height in pixels. */
  boxOf({ shape, x, y, size, digits }) {
    const side = size * this.unit;
    let [width, height] = [side, side];
    if (shape === "number") {
      const scale = side / this.digitSize;
      [width, height] = [
        (this.digits.width / 10) * digits.length * scale,
        this.digits.height * scale,
      ];
    }
    return [x * this.canvas.width - width / 2, y * this.canvas.height - height / 2, width, height];
  }

  /** Its box as shares of the picture. */
  shareOf(one) {
    const [left, top, width, height] = this.boxOf(one);
    const { width: w, height: h } = this.canvas;
    return [left / w, top / h, width / w, height / h];
  }

  /** The object on top at a point in pixels, or null. */
  at(x, y) {
    const inside = (one) => {
      const [left, top, width, height] = this.boxOf(one);
      return x >= left && x < left + width && y >= top && y < top + height;
    };
    return this.objects.findLast(inside) ?? null;
  }

  draw() {
    const pen = this.canvas.getContext("2d", { willReadFrequently: true });
    const { width, height } = this.canvas;
    pen.imageSmoothingQuality = "high"; // for pictures that are larger than they may be
    pen.fillStyle = this.photo === null ? GROUNDS[this.ground] : "#ffffff";
    pen.fillRect(0, 0, width, height);
    if (this.photo !== null) pen.drawImage(this.photo, 0, 0, width, height);
    for (const one of this.objects) {
      if (one.shape === "number") this.drawNumber(pen, one);
      else {
        pen.fillStyle = COLORS[one.color];
        pen.fill(new Path2D(outline(one.shape, ...this.boxOf(one))), "evenodd");
      }
    }
  }

  drawNumber(pen, one) {
    const [left, top, width, height] = this.boxOf(one);
    if (one.digits === "") return;
    const advance = this.digits.width / 10;
    const ink = canvasOf(Math.ceil(advance * one.digits.length), this.digits.height);
    const inkPen = ink.getContext("2d", { willReadFrequently: true });
    Array.from(one.digits).forEach((digit, place) => {
      const from = [Number(digit) * advance, 0, advance, this.digits.height];
      inkPen.drawImage(this.digits, ...from, place * advance, 0, advance, this.digits.height);
    });
    const image = inkPen.getImageData(0, 0, ink.width, ink.height);
    const color = COLORS[one.color];
    for (let i = 0; i < image.data.length; i += 4) {
      image.data[i + 3] = image.data[i]; // how white it is becomes how much ink there is
      for (let c = 0; c < 3; c++) {
        image.data[i + c] = parseInt(color.slice(1 + 2 * c, 3 + 2 * c), 16);
      }
    }
    inkPen.putImageData(image, 0, 0);
    pen.drawImage(ink, left, top, width, height);
  }
}

/** A shape as the path of an SVG. */
export function outline(shape, left, top, width, height) {
  const at = (x, y) => `${left + x * width} ${top + y * height}`;
  const polygon = (points) => `M${points.map(([x, y]) => at(x, y)).join("L")}Z`;
  const circle = (inset) => {
    const [rx, ry] = [(0.5 - inset) * width, (0.5 - inset) * height];
    const turn = `A${rx} ${ry} 0 0 1`;
    return `M${at(inset, 0.5)}${turn} ${at(1 - inset, 0.5)}${turn} ${at(inset, 0.5)}Z`;
  };
  if (shape === "circle") return circle(0);
  if (shape === "ring") return circle(0) + circle(0.17);
  if (shape === "square")
    return polygon([
      [0, 0],
      [1, 0],
      [1, 1],
      [0, 1],
    ]);
  if (shape === "triangle")
    return polygon([
      [0.5, 0],
      [1, 1],
      [0, 1],
    ]);
  if (shape === "star") {
    const points = Array.from({ length: 10 }, (_, i) => {
      const [radius, angle] = [i % 2 ? 0.42 : 1, (i * Math.PI) / 5 - Math.PI / 2];
      return [0.5 + 0.526 * radius * Math.cos(angle), 0.553 + 0.553 * radius * Math.sin(angle)];
    });
    return polygon(points);
  }
  const [a, b] = [0.34, 0.66];
  return polygon([
    [a, 0],
    [b, 0],
    [b, a],
    [1, a],
    [1, b],
    [b, b],
    [b, 1],
    [a, 1],
    [a, b],
    [0, b],
    [0, a],
    [a, a],
  ]);
}
