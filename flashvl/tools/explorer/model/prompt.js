// Messages become token ids: ChatML, with the picture's places in the first user turn.

import { TILE_NEXT, TILE_START } from "./config.js";

export const TURN_START = "<|im_start|>";
export const TURN_END = "<|im_end|>";
// Of the slice markers; see flashvl/assumptions.py.
export const PLACEHOLDERS = ["[PLACEHOLDER_0]", "[PLACEHOLDER_1]"];

/**
 * A conversation [{role, content}] -> ids of the prompt, up to where the answer begins.
 *
 * With `tiles` > 0 the picture's places stand in the first user turn, before its text and a line
 * break, which the config's `imagePlace` "text" leaves out.
 */
export function encodeMessages(messages, tokenizer, config, tiles = 0, tokensPerTile = 0) {
  const stated = messages[0].role === "system" || config.system === null;
  const system = stated ? [] : [{ role: "system", content: config.system }];
  const [start, end] = [tokenizer.controlId(TURN_START), tokenizer.controlId(TURN_END)];
  const lineBreak = tokenizer.encode("\n");
  let places = pictureIds(tiles, tokensPerTile, tokenizer, config.sliceMarkers);
  const ids = [];
  for (const { role, content } of [...system, ...messages]) {
    // Role and text are encoded together, so that a text's first line break merges as published.
    let text = `${role}\n${content}`;
    ids.push(start);
    if (role === "user" && places.length > 0) {
      ids.push(...tokenizer.encode("user\n"), ...places);
      [places, text] = [[], (config.imagePlace === "line" ? "\n" : "") + content];
    }
    ids.push(...tokenizer.encode(text), end, ...lineBreak);
  }
  return [...ids, start, ...tokenizer.encode("assistant\n")];
}

/**
 * The ids that stand for a picture: for each tile -200 and then -201 for all its tokens.
 *
 * `markers`: "none", the placeholders around each "tile" or the whole "picture", or two other
 * control tokens around each tile.
 */
export function pictureIds(tiles, tokensPerTile, tokenizer, markers) {
  const tile = [TILE_START, ...Array(Math.max(tokensPerTile - 1, 0)).fill(TILE_NEXT)];
  const all = (one) => Array(tiles).fill(one).flat();
  if (markers === "none" || tiles === 0) return all(tile);
  const names = typeof markers === "string" ? PLACEHOLDERS : markers;
  const [first, last] = names.map((name) => tokenizer.controlId(name));
  return markers === "picture" ? [first, ...all(tile), last] : all([first, ...tile, last]);
}
