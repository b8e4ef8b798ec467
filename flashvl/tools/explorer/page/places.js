// Where image tokens lie: the tiles' in rows and columns over the whole picture, and the
// thumbnail's. Tiles are numbered row by row, and the thumbnail after them.

export class Places {
  /**
   * `tileOrder` are the numbers of the tiles as they are read, see `TilerConfig.order`; a tile has
   * `side` x `side` tokens, read in rows or columns as `tokenOrder` says. In the stitching mode
   * `pool` tokens reach over the margin too; their place is in the core all the same.
   */
  constructor({ grid, side, tokenOrder, tileOrder }) {
    [this.gridRows, this.gridColumns] = grid;
    Object.assign(this, { side, tokenOrder, tileOrder });
    this.rows = this.gridRows * side;
    this.columns = this.gridColumns * side;
    this.cells = this.gridRows * this.gridColumns;
    this.hasThumbnail = tileOrder.length > this.cells;
    this.count = tileOrder.length * side ** 2;
  }

  /** {tile, row, column, thumbnail}: of the tiles' tokens all rows are counted from the top. */
  position(token) {
    const { side } = this;
    const tile = this.tileOrder[Math.floor(token / side ** 2)];
    const [slow, fast] = [Math.floor((token % side ** 2) / side), token % side];
    const [y, x] = this.tokenOrder === "rows" ? [slow, fast] : [fast, slow];
    if (tile === this.cells) return { tile, row: y, column: x, thumbnail: true };
    const row = Math.floor(tile / this.gridColumns) * side + y;
    return { tile, row, column: (tile % this.gridColumns) * side + x, thumbnail: false };
  }

  token(row, column, thumbnail = false) {
    const { side } = this;
    const tile = thumbnail
      ? this.cells
      : Math.floor(row / side) * this.gridColumns + Math.floor(column / side);
    const [y, x] = [row % side, column % side];
    const start = this.tileOrder.indexOf(tile) * side ** 2;
    return start + (this.tokenOrder === "rows" ? y * side + x : x * side + y);
  }

  /** Its part of the picture: left, top, width, height as shares of the picture's. */
  box(token) {
    const { row, column, thumbnail } = this.position(token);
    const [rows, columns] = thumbnail ? [this.side, this.side] : [this.rows, this.columns];
    return [column / columns, row / rows, 1 / columns, 1 / rows];
  }

  /** The tokens that lie over a part of the picture, those of the thumbnail too. */
  under([left, top, width, height]) {
    return Array.from({ length: this.count }, (_, token) => token).filter((token) => {
      const [x, y, w, h] = this.box(token);
      return x < left + width && x + w > left && y < top + height && y + h > top;
    });
  }

  /** The tokens of a tile. */
  tokensOf(tile) {
    const start = this.tileOrder.indexOf(tile) * this.side ** 2;
    return Array.from({ length: this.side ** 2 }, (_, i) => start + i);
  }

  /** A number for each image token -> those of the tiles (rows * columns), or of the thumbnail. */
  laidOut(values, thumbnail = false) {
    const [rows, columns] = thumbnail ? [this.side, this.side] : [this.rows, this.columns];
    return Float32Array.from(
      { length: rows * columns },
      (_, place) => values[this.token(Math.floor(place / columns), place % columns, thumbnail)],
    );
  }
}
