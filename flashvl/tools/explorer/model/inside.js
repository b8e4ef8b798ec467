// What the page shows of a run: words out of numbers. Nothing here changes an answer.

import { chances } from "./sampling.js";
import { GREEDY } from "./generate.js";
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
 * What each id of a prompt is: [{kind, text, image}].
 *
 * `kind`: system, question, tiles, thumbnail or answer. `image` counts the image tokens from 0;
 * null for text. `isThumbnail` says of such a number whether it is one of the thumbnail's.
 */
export function partsOfPrompt(ids, tokenizer, turnStart, isThumbnail) {
  const starts = ids.filter((id) => id === turnStart).length;
  const turns = ["system", "question", "answer"].slice(3 - starts); // one question alone
  let [turn, image] = [-1, 0];
  return ids.map((id) => {
    if (id === turnStart) turn += 1;
    if (id >= 0) return { kind: turns[turn], text: spelled(id, tokenizer), image: null };
    const kind = isThumbnail(image) ? "thumbnail" : "tiles";
    return { kind, text: "", image: image++ };
  });
}
