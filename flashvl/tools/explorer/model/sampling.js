// From logits to the next token: pure functions, in the order in which they are applied.

import { softmax } from "./tensor.js";

/**
 * logits (V), the ids seen so far -> the chance of each token (V) to be drawn.
 *
 * `temperature` divides the logits; then the `topK` likeliest tokens stay (0: all), and of these
 * the likeliest that reach `topP` together.
 */
export function chances(logits, seen, { temperature, topP, topK, repetitionPenalty }) {
  let kept = Float32Array.from(logits);
  if (repetitionPenalty !== 1) kept = penalize(kept, seen, repetitionPenalty);
  const largest = kept.reduce((a, b) => Math.max(a, b));
  kept = kept.map((logit) => (logit - largest) / temperature);
  if (topK > 0) kept = keepTopK(kept, topK);
  if (topP < 1) kept = keepTopP(kept, topP);
  return softmax(kept);
}

/** The next token: the likeliest, or with `doSample` drawn by `random`, which gives 0 to 1. */
export function nextToken(logits, seen, sampling, random) {
  if (!sampling.doSample) {
    return argmax(
      sampling.repetitionPenalty === 1
        ? logits
        : penalize(logits, seen, sampling.repetitionPenalty),
    );
  }
  const drawn = chances(logits, seen, sampling);
  let left = random() * drawn.reduce((a, b) => a + b);
  const token = drawn.findIndex((chance) => (left -= chance) < 0);
  return token < 0 ? argmax(drawn) : token; // rounding may leave a little
}

/** The first of the largest. */
export function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Makes tokens that were seen less likely (arXiv 1909.05858). */
export function penalize(logits, seen, penalty) {
  const penalized = Float32Array.from(logits);
  for (const id of new Set(seen)) {
    penalized[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
  }
  return penalized;
}

/** All but the k largest become -Infinity. */
export function keepTopK(logits, k) {
  const smallest = Float32Array.from(logits).sort()[Math.max(logits.length - k, 0)];
  return logits.map((logit) => (logit < smallest ? -Infinity : logit));
}

/** The most likely tokens that reach p together stay, others become -Infinity. */
export function keepTopP(logits, p) {
  const order = Array.from(logits.keys()).sort((a, b) => logits[a] - logits[b]); // least first
  const ordered = softmax(Float32Array.from(order, (id) => logits[id]));
  const kept = Float32Array.from(logits);
  let sum = 0;
  order.forEach((id, place) => {
    sum += ordered[place];
    if (sum <= 1 - p && place < order.length - 1) kept[id] = -Infinity;
  });
  return kept;
}

/** Numbers from 0 to 1 that are the same for the same seed; not those of PyTorch (mulberry32). */
export function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}
