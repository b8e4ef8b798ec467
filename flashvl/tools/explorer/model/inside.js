// What the page shows of a run: words out of numbers. Nothing here changes an answer.

import { chances } from "./sampling.js";
import { GREEDY } from "./generate.js";
import { TURN_START } from "./prompt.js";
import { dot } from "./tensor.js";

// Tokens that are a whole word, in each language of the page.
const WHOLE_WORDS = { en: /^ \p{Script=Latin}{3,}$/u, zh: /^\p{Script=Han}+$/u };

/** The whole words of a vocabulary: {en: [[id, text], ...], zh: ...}; all tokens if it has none. */
export function wholeWords(tokenizer) {
  const texts = tokenizer.tokens.map((_, id) => [id, tokenizer.decode([id])]);
  return Object.fromEntries(
    Object.entries(WHOLE_WORDS).map(([language, pattern]) => {
      const words = texts.filter(([, text]) => pattern.test(text));
      return [language, words.length > 0 ? words : texts];
    }),
  );
}

/** For each image token (S, tokens, D): its norm, and by language the nearest words by cosine. */
export function nearestWords(imageTokens, embedding, words, count) {
  const D = embedding.width;
  const lengths = Float32Array.from({ length: embedding.rows }, (_, id) => norm(embedding.row(id)));
  return Array.from({ length: imageTokens.rows }, (_, t) => {
    const length = norm(imageTokens.row(t));
    const nearest = (list) =>
      list
        .map(([id, text]) => ({
          text: text.trim(),
          cosine: dot(imageTokens.data, t * D, embedding.data, id * D, D) / (length * lengths[id]),
        }))
        .sort((a, b) => b.cosine - a.cosine)
        .slice(0, count);
    return {
      norm: length,
      words: Object.fromEntries(
        Object.entries(words).map(([language, list]) => [language, nearest(list)]),
      ),
    };
  });
}

function norm(vector) {
  return Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0));
}

/** The likeliest tokens after a hidden state (1, D) of any layer: the logit lens. */
export function lens(decoder, hidden, tokenizer, count) {
  const logits = decoder.head.forward(decoder.norm.forward(hidden)).data; // (V)
  return likeliest(chances(logits, [], GREEDY), tokenizer, count);
}

/** Chances (V) -> the largest: [{id, text, chance}], the likeliest first. */
export function likeliest(values, tokenizer, count) {
  return Array.from(values.keys())
    .sort((a, b) => values[b] - values[a])
    .slice(0, count)
    .map((id) => ({ id, text: spelled(id, tokenizer), chance: values[id] }));
}

/** A token as text: a control token by its name, part of a character by its id. */
export function spelled(id, tokenizer) {
  const text = tokenizer.controlName(id) ?? tokenizer.decode([id]);
  return text === "" || text.includes("\ufffd") ? `#${id}` : text;
}

/**
 * What each id of a prompt with one question is: [{kind, text, image}].
 *
 * `kind`: system, question, tiles, thumbnail or answer; slice markers are of the kind of the tile
 * that they stand at. `image` counts the image tokens from 0; null for text. `grid` is the
 * picture's.
 */
export function partsOfPrompt(ids, tokenizer, config, grid) {
  const { prompt, tiler, tokensPerTile } = config;
  const turnStart = tokenizer.controlId(TURN_START);
  const turns = [...(prompt.system === null ? [] : ["system"]), "question", "answer"];
  const order = tiler.order(grid);
  const kindOf = (image) =>
    order[Math.floor(image / tokensPerTile)] < grid[0] * grid[1] ? "tiles" : "thumbnail";
  const marked = prompt.sliceMarkers !== "none";
  let [turn, next] = [-1, 0]; // next: the image token that comes next
  return ids.map((id, place) => {
    if (id < 0) return { kind: kindOf(next), text: "", image: next++ };
    const text = spelled(id, tokenizer);
    if (marked && ids[place + 1] < 0) return { kind: kindOf(next), text, image: null };
    if (marked && ids[place - 1] < 0) return { kind: kindOf(next - 1), text, image: null };
    if (id === turnStart) turn += 1;
    return { kind: turns[turn], text, image: null };
  });
}
