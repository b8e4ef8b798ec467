"""Flash-VL from a picture and a question to an answer. Read `forward` from top to bottom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .batch import answer_batch
from .checkpoint import check_tensors, load_tensors, read_config, read_headers, read_stop_ids
from .compiling import compile_model
from .compressor import Compressor
from .config import FlashVLConfig
from .conversation import Conversation
from .cpu import fit_to_cpu, stays_in_bfloat16
from .decoder import Decoder
from .device import choose_device, choose_dtype
from .errors import ArgumentError, CheckpointError, device_failure_as_error
from .generate import Steps, check_length, check_max_new_tokens, generate, whole_characters
from .hub import find_model
from .image import ImageLike, load_image, normalise
from .prompt import TILE_NEXT, TILE_START, Message, encode_messages
from .quantising import check_quantize, quantise
from .sampling import Sampling
from .saving import save_checkpoint
from .siglip import SigLIPEncoder
from .tiling import Grid, choose_grid, tile_image
from .tokenizer import Tokenizer
from .vision import VisionEncoder

TOWERS = {"aimv2": VisionEncoder, "siglip": SigLIPEncoder}


class FlashVL(nn.Module):
    """The whole model: tower, compressor and decoder, wired. `FlashVL(config)` has random weights.

    `tokenizer` and `stop_ids` come with `from_pretrained`, or are set by whoever trains a model.
    """

    def __init__(self, config: FlashVLConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = TOWERS[config.vision.architecture](config.vision)
        self.compressor = Compressor(config)
        self.decoder = Decoder(config.decoder)
        self.tokenizer: Tokenizer | None = None
        self.stop_ids: frozenset[int] = frozenset()
        self.steps = Steps()
        self.folder: Path | None = None

    def forward(
        self, input_ids: Tensor, pixels: Tensor | None = None, grid: Grid | None = None
    ) -> Tensor:
        """Ids (B, T) with a place for each image token, pixels (S, C, height, width) -> (B, T, V).

        pixels are the tiles of all rows, one after the other; None for text alone. `grid` is for
        the stitching mode `mean` alone. Logits have the dtype of the weights.
        """
        embeddings = self.embed(input_ids, self.encode(pixels, grid))  # (B, T, D)
        hidden = self.decoder(embeddings)  # (B, T, D)
        return self.decoder.head(hidden)  # (B, T, V)

    def encode(self, pixels: Tensor | None, grid: Grid | None = None) -> Tensor | None:
        """Tiles (S, C, height, width) -> image tokens (S, T, D), or None for text alone."""
        if pixels is None:
            return None
        features = self.vision(pixels)  # (S, N, vision width)
        return self.compressor(features, grid)  # (S, T, D)

    def embed(self, input_ids: Tensor, image_tokens: Tensor | None = None) -> Tensor:
        """Text ids become embeddings, places -200 and -201 the image tokens in their order.

        (B, T), (S, tokens, D) -> (B, T, D). Raises `ArgumentError` if there are not as many
        places as tokens.
        """
        places = (input_ids == TILE_START) | (input_ids == TILE_NEXT)  # (B, T)
        embeddings = self.decoder.embedding(input_ids.masked_fill(places, 0))  # (B, T, D)
        if image_tokens is None:
            image_tokens = embeddings.new_empty(0, 0, embeddings.shape[-1])
        flat = image_tokens.flatten(0, 1)  # (S * tokens, D)
        if places.device.type != "meta" and int(places.sum()) != len(flat):
            raise ArgumentError(
                f"input_ids have {int(places.sum())} places for image tokens, the pixels give "
                f"{len(flat)}; take both from one call of prepare"
            )
        return embeddings.masked_scatter(places[..., None], flat.to(embeddings.dtype))

    def prepare(
        self, image: ImageLike | None, messages: Sequence[Message]
    ) -> tuple[Tensor, Tensor | None]:
        """A picture and a conversation -> input_ids (1, T), pixels (S, C, height, width) or None.

        On the model's device; pixels are float32. Raises `ImageError`, `MessageError`.
        """
        pixels = None
        if image is not None:
            tiles, _ = tile_image(load_image(image), self.config.tiler)  # (S, height, width, C)
            pixels = normalise(tiles, self.config.tiler.mean, self.config.tiler.std)
            pixels = pixels.to(self.device)  # (S, C, height, width)
        ids = encode_messages(
            messages,
            self._require_tokenizer(),
            self.config.prompt,
            tiles=0 if pixels is None else len(pixels),
            tokens_per_tile=self.config.tokens_per_tile,
        )
        input_ids = torch.tensor([ids], device=self.device)  # (1, T)
        return input_ids, pixels

    def embed_prompt(
        self, image: ImageLike | None, messages: Sequence[Message]
    ) -> tuple[Tensor, Tensor]:
        """A picture and a conversation -> input_ids (1, T), embeddings (1, T, D), the prompt read.

        Raises `ImageError`, and `MessageError` also if the prompt leaves no room for an answer.
        """
        image = None if image is None else load_image(image)
        # Pixels too, so that they look alike to a compiled tower wherever they come from.
        with torch.inference_mode():
            input_ids, pixels = self.prepare(image, messages)
            check_length(input_ids.shape[1], self.config.decoder.context)
            grid = None if image is None else self.grid(image)
            embeddings = self.embed(input_ids, self.encode(pixels, grid))  # (1, T, D)
        return input_ids, embeddings

    def grid(self, image: ImageLike) -> Grid:
        """The (rows, columns) of tiles that a picture is cut into."""
        image, tiler = load_image(image), self.config.tiler
        return choose_grid(image.height, image.width, tiler.core_size, tiler.max_tiles)

    def chat(
        self,
        image: ImageLike | None,
        messages: Sequence[Message],
        do_sample: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """The answer to the last user turn, greedy unless `do_sample`. Source: the model card.

        `image`: PIL image, path, bytes, (H, W, 3) uint8 array, or None. `messages`: the list so
        far of {"role", "content"}; a system turn may come first and replaces the default one.
        Raises `ImageError`, `MessageError`, `ArgumentError`, `DeviceError`.
        """
        sampling = Sampling(do_sample, temperature, top_p, top_k, repetition_penalty, seed)
        return "".join(self._answer(image, messages, max_new_tokens, sampling))

    def stream(
        self,
        image: ImageLike | None,
        messages: Sequence[Message],
        do_sample: bool = False,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """`chat` in pieces as they come, each of whole characters; joined they are its answer."""
        sampling = Sampling(do_sample, temperature, top_p, top_k, repetition_penalty, seed)
        return self._answer(image, messages, max_new_tokens, sampling)

    def start(self, image: ImageLike | None, system: str | None = None) -> Conversation:
        """A conversation in rounds, `ask` after `ask`; the picture is encoded here, once.

        `system` replaces the default system turn. Raises `ImageError`, `MessageError`,
        `DeviceError`.
        """
        return Conversation(self, image, system)

    def chat_batch(
        self,
        pairs: Iterable[tuple[ImageLike | None, Sequence[Message]]],
        *,
        max_new_tokens: int = 256,
        **sampling: Any,
    ) -> list[str]:
        """`chat` for many (image, messages) at once, in their order; the same keyword arguments.

        Each row is answered as it would be alone, as far as rounding does not tip a balance. A
        `seed` is each row's own: it draws what `chat` would draw with that seed. Raises as `chat`,
        naming the row, counted from 1.
        """
        check_max_new_tokens(max_new_tokens)
        return answer_batch(self, pairs, max_new_tokens, Sampling(**sampling))

    def _answer(
        self,
        image: ImageLike | None,
        messages: Sequence[Message],
        max_new_tokens: int,
        sampling: Sampling,
    ) -> Iterator[str]:
        check_max_new_tokens(max_new_tokens)
        with device_failure_as_error("answering"):
            input_ids, embeddings = self.embed_prompt(image, messages)
            text_ids = input_ids[input_ids >= 0][None]  # (1, text tokens)
            answer = generate(
                self.decoder,
                embeddings,
                text_ids,
                max_new_tokens,
                sampling,
                self.stop_ids,
                steps=self.steps,
            )
            yield from whole_characters(answer, self._require_tokenizer())

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        assumptions: Mapping[str, Any] | None = None,
        quantize: str | None = None,
    ) -> FlashVL:
        """Loads "nano", a folder in the published layout, or a repository of the hub.

        `dtype` "auto": as stored; on a CPU large bfloat16 weights stay as stored and are multiplied
        as `cpu.py` says, others become float32. `quantize` "int8": the decoder's weights as int8,
        see `quantising.py`. `assumptions` overrides fields of `config_parts.ASSUMPTIONS`. Raises
        `CheckpointError`, `ConfigError`, `DownloadError`, `DeviceError`, `ArgumentError`.
        """
        device = choose_device(device)
        check_quantize(quantize)
        wanted_dtype = choose_dtype(dtype, device)
        folder = find_model(name, revision)
        headers = read_headers(folder)
        fits_to_cpu = dtype == "auto" and device.type == "cpu" and stays_in_bfloat16(headers)
        config = read_config(folder, headers, assumptions)
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer.vocabulary > config.decoder.vocabulary:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocabulary} tokens, the decoder embeds "
                f"{config.decoder.vocabulary}; the two are not of one model"
            )
        with torch.device("meta"):
            model = cls(config)
        check_tensors(model, config, headers)
        with device_failure_as_error("loading the weights"):
            load_tensors(model, config, headers, device, None if fits_to_cpu else wanted_dtype)
            if quantize is not None:
                quantise(model)
            if fits_to_cpu:
                fit_to_cpu(model)
        model.tokenizer = tokenizer
        model.stop_ids = read_stop_ids(folder, tokenizer)
        model.folder = folder
        return model.eval()

    def compile(self) -> None:
        """Compiles tower, prefill and decode in place, for CUDA; `chat` and `start` then use them.

        Compiling happens at the first answers and takes a minute or so; see `compiling.py`. Raises
        `ArgumentError` for int8 weights on a CPU.
        """
        compile_model(self)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes the published layout. Raises `CheckpointError` rather than replace a model."""
        save_checkpoint(self, Path(folder), overwrite)

    @property
    def device(self) -> torch.device:
        return self.decoder.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.decoder.embedding.weight.dtype

    @property
    def activation_dtype(self) -> torch.dtype:
        """Of what passes through the layers; float32 where `cpu.py` widens bfloat16 weights."""
        return self.decoder.embedding(torch.empty(0, dtype=torch.long, device=self.device)).dtype

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise CheckpointError(
                "this model has no tokenizer; load one with from_pretrained, or set model.tokenizer"
            )
        return self.tokenizer
