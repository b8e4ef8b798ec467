// The config of a model, as flashvl/config.py has it: the same fields and properties, read from
// what Python writes. Names are Python's in JavaScript's spelling: max_tiles is maxTiles.

// In input ids: a tile's first image token, and each of its further ones.
export const TILE_START = -200;
export const TILE_NEXT = -201;

/** How a picture is cut. Sizes in pixels; `resample` is Pillow's number of the filter. */
export class TilerConfig {
  constructor(values) {
    Object.assign(this, values);
  }

  get coreSize() {
    return this.tileSize - 2 * this.margin;
  }

  /** The margin that the tower sees: none in the stitching mode `none`. */
  get seenMargin() {
    return this.stitching === "none" ? 0 : this.margin;
  }

  /** The side of what the tower sees of a tile. */
  get seenSize() {
    return this.coreSize + 2 * this.seenMargin;
  }

  /** How many tiles a picture of this grid has, its thumbnail included. */
  tiles([rows, columns]) {
    const cells = rows * columns;
    return cells + (this.thumbnail !== "none" && cells > 1 ? 1 : 0);
  }

  /**
   * The numbers of a picture's tiles in the order in which the decoder reads them. Those of the
   * grid are numbered row by row from 0, and the thumbnail comes after them.
   */
  order([rows, columns]) {
    const cells = rows * columns;
    const order = Array.from({ length: cells }, (_, tile) => tile);
    if (this.tileOrder === "columns") order.sort((a, b) => (a % columns) - (b % columns) || a - b);
    const thumbnail = this.tiles([rows, columns]) > cells ? [cells] : [];
    return this.thumbnail === "first" ? [...thumbnail, ...order] : [...order, ...thumbnail];
  }
}

/** One model: its vision, compressor, decoder, tiler and prompt. */
export class FlashVLConfig {
  constructor({ vision, compressor, decoder, tiler, prompt }) {
    Object.assign(this, { vision, compressor, decoder, prompt });
    this.tiler = new TilerConfig(tiler);
  }

  /** From the JSON of Python's dataclasses. */
  static fromDict(values) {
    return new FlashVLConfig(inCamelCase(values));
  }

  /** The same model in another stitching mode. */
  stitchedBy(stitching) {
    return new FlashVLConfig({ ...this, tiler: { ...this.tiler, stitching } });
  }

  /** Patches that stitching removes on each side of the tower's output. */
  get stitchedMargin() {
    return Math.floor(this.tiler.seenMargin / this.vision.patchSize);
  }

  /** Tokens along one side of a tile's core. */
  get tokenSide() {
    const coreSide = Math.floor(this.tiler.coreSize / this.vision.patchSize);
    return Math.floor(coreSide / this.compressor.shuffle);
  }

  get tokensPerTile() {
    return this.tokenSide ** 2;
  }
}

function inCamelCase(value) {
  if (Array.isArray(value) || value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).map(([name, part]) => [
    name.replace(/_(\w)/g, (_, letter) => letter.toUpperCase()),
    inCamelCase(part),
  ]);
  return Object.fromEntries(entries);
}
