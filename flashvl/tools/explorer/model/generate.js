// Generation: the prompt at once (prefill), then one token at a time (decode).

import { KVCache } from "./cache.js";
import { ALL_THERE, unwatched } from "./network.js";
import { nextToken, randomNumbers } from "./sampling.js";

export const GREEDY = {
  doSample: false,
  maxNewTokens: 256,
  temperature: 1,
  topP: 1,
  topK: 0,
  repetitionPenalty: 1,
  seed: 0,
};

/**
 * Yields {id, logits (V), stops} for each token of the answer, the stop token that ends it too.
 *
 * `ids` are the prompt's, `imageTokens` (S, tokens, D) or null. `watch` sees the passes that give
 * the logits, for each token one, the prompt's whole one first.
 */
export function* generate(
  model,
  ids,
  imageTokens,
  { sampling = GREEDY, stopIds, without = ALL_THERE, watch = unwatched },
) {
  const { context } = model.config.decoder;
  if (ids.length >= context) {
    throw new Error(`the prompt has ${ids.length} tokens, the model's context ${context}`);
  }
  const limit = Math.min(sampling.maxNewTokens, context - ids.length);
  const cache = new KVCache(model.config.decoder, ids.length + limit);
  const random = randomNumbers(sampling.seed);
  const seen = ids.filter((id) => id >= 0);
  const options = { cache, without, watch };
  let logits = model.read(ids, imageTokens, { ...options, first: ids.length - 1 }); // (1, V)
  for (let count = 1; ; count++) {
    const id = nextToken(logits.data, seen, sampling, random);
    const stops = stopIds.has(id);
    yield { id, logits: logits.data, stops };
    if (stops || count >= limit) return;
    seen.push(id);
    logits = model.read([id], null, options); // (1, V)
  }
}
