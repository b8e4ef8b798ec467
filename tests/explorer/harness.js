// What the tests ask of the page's model. It stands behind the joined modules; node runs both.

const { readFileSync } = require("node:fs");
const given = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const { FlashVLConfig } = modules["model/config.js"];
const { Tensor } = modules["model/tensor.js"];

const unpackedPicture = ({ height, width, rgb }) => ({
  height,
  width,
  rgb: new Uint8ClampedArray(Buffer.from(rgb, "base64")),
});
const packedPicture = ({ height, width, rgb }) => ({
  height,
  width,
  rgb: Buffer.from(rgb).toString("base64"),
});
const packed = ({ shape, data }) => ({
  shape,
  data: Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString("base64"),
});
const opened = () => ({
  ...given.model,
  weights: new Uint8Array(Buffer.from(given.model.weights, "base64")),
});

const tasks = {
  words: () => modules["page/words.js"].WORDS,

  placeholders: () => modules["model/prompt.js"].PLACEHOLDERS,

  resize: () =>
    given.cases.map(({ picture, height, width, resample }) =>
      packedPicture(
        modules["model/image.js"].resize(
          unpackedPicture(picture),
          height,
          width,
          resample,
          given.heightFirst,
        ),
      ),
    ),

  tiles: () =>
    given.cases.map(({ picture, config }) => {
      const { tiler } = FlashVLConfig.fromDict(config);
      const { tiles, grid } = modules["model/tiling.js"].tileImage(unpackedPicture(picture), tiler);
      return { grid, tiles: tiles.map(packedPicture) };
    }),

  grids: () => {
    const { GRID_RULES } = modules["model/tiling.js"];
    return {
      rules: Object.keys(GRID_RULES),
      grids: given.cases.map(([rule, ...sizes]) => GRID_RULES[rule](...sizes)),
    };
  },

  logarithms: () => given.values.map(modules["model/tiling.js"].logarithm),

  windows: () => {
    const { averageWindows } = modules["model/compressor.js"];
    return given.cases.map(({ shape, values, core }) =>
      packed(averageWindows(new Tensor(shape, Float32Array.from(values)), core)),
    );
  },

  // Where each token lies: values laid out, and each token's position, back again, and box.
  places: () =>
    given.cases.map(({ config, grid }) => {
      const { tiler, compressor, tokenSide } = FlashVLConfig.fromDict(config);
      const places = new modules["page/places.js"].Places({
        grid,
        tileOrder: tiler.order(grid),
        side: tokenSide,
        tokenOrder: compressor.tokenOrder,
      });
      const tokens = Array.from({ length: places.count }, (_, token) => token);
      return {
        tiles: Array.from(places.laidOut(tokens)),
        thumbnail: places.hasThumbnail ? Array.from(places.laidOut(tokens, true)) : null,
        again: tokens.map((token) => {
          const { row, column, thumbnail } = places.position(token);
          return places.token(row, column, thumbnail);
        }),
        boxes: tokens.map((token) => places.box(token)),
        ofTiles: tiler.order(grid).map((_, tile) => places.tokensOf(tile)),
      };
    }),

  tokens: () => {
    const tokenizer = new modules["model/tokenizer.js"].Tokenizer(given.definition);
    return {
      ids: given.texts.map((text) => tokenizer.encode(text)),
      texts: given.ids.map((ids) => tokenizer.decode(ids)),
    };
  },

  prompts: () => {
    const tokenizer = new modules["model/tokenizer.js"].Tokenizer(given.definition);
    return given.cases.map(({ messages, config, tiles, tokensPerTile }) =>
      modules["model/prompt.js"].encodeMessages(messages, tokenizer, config, tiles, tokensPerTile),
    );
  },

  chances: () =>
    given.cases.map(({ logits, seen, sampling }) =>
      Array.from(modules["model/sampling.js"].chances(Float32Array.from(logits), seen, sampling)),
    ),

  draws: () => {
    const random = modules["model/sampling.js"].randomNumbers(given.seed);
    const drawn = Array.from({ length: given.count }, () =>
      modules["model/sampling.js"].nextToken(
        Float32Array.from(given.logits),
        [],
        given.sampling,
        random,
      ),
    );
    return drawn;
  },

  // One pass, and all that passes between the parts.
  layers: () => {
    const model = opened();
    const config = FlashVLConfig.fromDict(model.config);
    const network = new modules["model/network.js"].FlashVLModel(
      config,
      modules["model/weights.js"].Weights.fromBytes(model.weights),
    );
    const seen = {};
    const watch = (name, tensor) => (seen[name] = packed(tensor));
    const cache = new modules["model/cache.js"].KVCache(config.decoder, given.ids.length);
    const { tiles, grid } = modules["model/tiling.js"].tileImage(
      unpackedPicture(given.picture),
      config.tiler,
    );
    const pixels = modules["model/processor.js"].normalize(
      tiles,
      config.tiler.mean,
      config.tiler.std,
    );
    const without = {
      columns: new Set(given.without.columns),
      heads: new Set(given.without.heads),
    };
    const features = network.vision.forward(pixels, watch);
    seen.vision = packed(features);
    seen.compressor = packed(network.compress(features, grid));
    seen.pixels = packed(pixels);
    // In two parts, so that the cache has its say.
    const [head, tail] = [given.ids.slice(0, -2), given.ids.slice(-2)];
    network.forward(head, pixels, grid, { cache, without });
    seen.logits = packed(network.forward(tail, null, null, { cache, without, watch }));
    return seen;
  },

  // Jobs that come faster than they are done, as the worker takes them; the answers that it gives.
  hurried: () =>
    new Promise((resolve) => {
      const answers = [];
      const scope = {
        postMessage: (message) => {
          if (message.kind === "failed") throw new Error(message.reason);
          if (message.kind === "done") answers.push([message.number, message.answer]);
          if (message.number === given.jobs.length && message.kind === "done") resolve(answers);
        },
      };
      modules["model/worker.js"].serve(scope);
      scope.onmessage({ data: { kind: "open", ...opened() } });
      given.jobs.forEach((job, index) => {
        const data = {
          kind: "ask",
          number: index + 1,
          stitching: given.model.config.tiler.stitching,
          without: { tokens: [], heads: [] },
          sampling: modules["model/generate.js"].GREEDY,
          ...job,
          picture: job.picture && unpackedPicture(job.picture),
        };
        setTimeout(() => scope.onmessage({ data }), given.wait * index);
      });
    }),

  // The worker's own jobs, one after the other; the messages of each.
  jobs: async () => {
    const all = [];
    const session = new modules["model/worker.js"].Session(
      opened(),
      (message) => all[all.length - 1].push(message),
      () => Promise.resolve(),
    );
    for (const [index, job] of given.jobs.entries()) {
      all.push([]);
      const picture = job.picture && unpackedPicture(job.picture);
      const sampling = { ...modules["model/generate.js"].GREEDY, ...job.sampling };
      await session.run({
        number: index + 1,
        stitching: session.config.tiler.stitching,
        without: { tokens: [], heads: [] },
        ...job,
        picture,
        sampling,
      });
    }
    return all.map((messages) =>
      given.whole ? messages : messages.filter(({ kind }) => kind === "done"),
    );
  },
};

Promise.resolve(tasks[given.task]()).then((result) =>
  process.stdout.write(JSON.stringify(result), () => process.exit(0)),
);
