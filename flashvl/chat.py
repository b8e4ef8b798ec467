"""Flash-VL from a picture and a question to an answer: the network and all that it needs around it.

Read `model/network.py` for the network itself; here it meets words, pictures and files.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .checkpoint.adapter import attach, read_adapter, save_adapter
from .checkpoint.files import read_headers
from .checkpoint.hub import find_model
from .checkpoint.load import check_tensors, load_tensors
from .checkpoint.published import Assumptions, read_config, read_stop_ids
from .checkpoint.save import save_checkpoint
from .config import QUANTIZATIONS, FlashVLConfig
from .device import check_weights, choose_device, choose_dtype, device_failure_as_error
from .errors import ArgumentError, CheckpointError, FlashVLError
from .generation.conversation import Conversation
from .generation.generate import (
    BeginDecode,
    Row,
    begin_decode,
    check_length,
    generate,
    read_prompt,
    whole_characters,
)
from .generation.sampling import Sampling, SamplingOptions
from .input.image import ImageLike
from .input.processor import Processor, Prompt, TrainingExample
from .input.prompt import Message
from .input.tokenizer import Tokenizer
from .model.lora import loras, merge_loras
from .model.network import FlashVLModel
from .reading import read_path, shown

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Whoever wants the plain code alone may delete that folder.
HAS_FAST_PATHS = find_spec(".fast", __package__) is not None


class FlashVL:
    """Owns a network, the processor of its prompts, and the ids that end an answer.

    `folder` is the one that the model came from. `begin_decode` is how its answers are decoded;
    `compile` replaces it.
    """

    def __init__(
        self,
        model: FlashVLModel,
        tokenizer: Tokenizer,
        stop_ids: Collection[int],
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.processor = Processor(model.config, tokenizer)
        self.stop_ids = frozenset(stop_ids)
        self.folder = folder
        self.begin_decode: BeginDecode = begin_decode

    @property
    def config(self) -> FlashVLConfig:
        return self.model.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.processor.tokenizer

    def prepare(self, image: ImageLike | None, messages: Sequence[Message]) -> Prompt:
        """A picture and a conversation -> what the network takes, on its device.

        Raises `ImageError`, `MessageError`.
        """
        return self.processor(image, messages).to(self.model.device)

    def training_example(
        self, image: ImageLike | None, messages: Sequence[Message]
    ) -> TrainingExample:
        """A picture and a conversation that ends with an answer -> what is learned from it.

        What stands before each answer is what `prepare` gives for the conversation up to there.
        The labels are those of the answers, each with the `<|im_end|>` after it; of `labels[:, 1:]`
        those that are not -100 are to be predicted by the logits of `input_ids[:, :-1]`. On the
        model's device. Raises `ImageError`, `MessageError`.
        """
        ids, labels, pixels, grids = self.processor.example(image, messages)
        device = self.model.device
        pixels = None if pixels is None else pixels.to(device)
        return TrainingExample(ids.to(device), labels.to(device), pixels, grids)

    def chat(
        self,
        image: ImageLike | None,
        messages: Sequence[Message],
        **options: Unpack[SamplingOptions],
    ) -> str:
        """The answer to the last user turn, greedy unless `do_sample`. Source: the model card.

        `image`: PIL image, path, bytes, (H, W, 3) uint8 array, or None. `messages`: the list so
        far of {"role", "content"}; a system turn may come first and replaces the default one.
        Options: see `Sampling`; of them `max_new_tokens` is 256 unless said otherwise. Raises
        `ImageError`, `MessageError`, `ArgumentError`, `DeviceError`.
        """
        return "".join(self.stream(image, messages, **options))

    def stream(
        self,
        image: ImageLike | None,
        messages: Sequence[Message],
        **options: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """`chat` in pieces as they come, each of whole characters; joined they are its answer."""
        sampling = Sampling(**options)
        return self._answer(self._prepare_answer(image, messages), sampling)

    def start(self, image: ImageLike | None, system: str | None = None) -> Conversation:
        """A conversation in rounds, `ask` after `ask`; the picture is read here, once.

        `system` replaces the default system turn. Raises `ImageError`, `MessageError`,
        `DeviceError`.
        """
        return Conversation(
            self.model, self.processor, self.stop_ids, image, system, self.begin_decode
        )

    def chat_batch(
        self,
        pairs: Iterable[tuple[ImageLike | None, Sequence[Message]]],
        **options: Unpack[SamplingOptions],
    ) -> list[str]:
        """`chat` for many (image, messages) at once, in their order; the same options.

        Each row is answered as it would be alone, as far as rounding does not tip a balance. A
        `seed` is each row's own: it draws what `chat` would draw with that seed. Raises as `chat`,
        naming the row, counted from 1.
        """
        sampling = Sampling(**options)
        if not isinstance(pairs, Iterable):
            raise ArgumentError(
                f"the batch must be a list of pairs (image, messages), found {type(pairs).__name__}"
            )
        with device_failure_as_error("answering a batch"):
            rows = [self._read_row(number, pair, sampling) for number, pair in enumerate(pairs, 1)]
            if rows:
                for _ in generate(self.model, rows, sampling, self.stop_ids, self.begin_decode):
                    pass  # the rows hold their answers
        return ["".join(whole_characters(iter(row.ids), self.tokenizer)) for row in rows]

    def _prepare_answer(self, image: ImageLike | None, messages: Sequence[Message]) -> Prompt:
        """`prepare` for a prompt that must leave room for an answer."""
        check_weights(self.model.device)
        # Made under inference mode, pixels look alike to a compiled tower wherever they come from.
        with device_failure_as_error("preparing the picture"), torch.inference_mode():
            prompt = self.prepare(image, messages)
        check_length(prompt.input_ids.shape[1], self.config.decoder.context)
        return prompt

    def _answer(self, prompt: Prompt, sampling: Sampling) -> Iterator[str]:
        with device_failure_as_error("answering"):
            row = read_prompt(self.model, prompt, sampling)
            steps = generate(self.model, [row], sampling, self.stop_ids, self.begin_decode)
            yield from whole_characters((row.ids[-1] for _ in steps), self.tokenizer)

    def _read_row(self, number: int, pair: object, sampling: Sampling) -> Row:
        """Raises as `chat`, with the number of the row before the text of the error."""
        try:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ArgumentError("each row must be a pair (image, messages)")
            prompt = self._prepare_answer(*pair)
            return read_prompt(self.model, prompt, sampling, number=number)
        except FlashVLError as error:
            raise type(error)(f"row {number} of the batch: {error}") from error

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        assumptions: Assumptions = None,
        quantize: str | None = None,
        adapter: str | Path | None = None,
    ) -> FlashVL:
        """Loads "nano", a folder in the published layout, or a repository of the hub.

        `dtype` "auto": as stored; on a CPU large bfloat16 weights stay as stored and are multiplied
        as `fast/cpu.py` says, others become float32. `quantize` "int8" or "int4": the decoder's
        weights in so many bits, see `fast/quantized.py`. `assumptions` overrides fields of
        assumptions.py, by a dict or a JSON file. `adapter` is the folder of a LoRA in PEFT's form,
        which stands beside weights of any kind. Raises `CheckpointError`, `ConfigError`,
        `DownloadError`, `DeviceError`, `ArgumentError`.
        """
        device = choose_device(device)
        if quantize is not None and quantize not in QUANTIZATIONS:
            raise ArgumentError(
                f"quantize must be {' or '.join(QUANTIZATIONS)} or None, found {shown(quantize)}"
            )
        _check_fast_paths(quantize is not None)
        stored_as = choose_dtype(dtype, device)
        folder = find_model(name, revision)
        headers = read_headers(folder)
        fits_to_cpu = False
        if HAS_FAST_PATHS and dtype == "auto" and device.type == "cpu":
            from .fast.cpu import fit_to_cpu, stays_in_bfloat16

            fits_to_cpu = stays_in_bfloat16(headers)
        config = read_config(folder, headers, assumptions)
        tokenizer = Tokenizer.from_folder(folder)
        if tokenizer.vocabulary > config.decoder.vocabulary:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocabulary} tokens, the decoder embeds "
                f"{config.decoder.vocabulary}; the two are not of one model"
            )
        with torch.device("meta"):
            model = FlashVLModel(config)
        check_tensors(model, headers)
        beside = None
        if adapter is not None:
            beside = read_adapter(read_path(adapter, "adapter", CheckpointError), model)
        with device_failure_as_error("loading the weights"):
            load_tensors(model, headers, device, None if fits_to_cpu else stored_as)
            if quantize is not None:
                from .fast.quantized import quantize_decoder

                quantize_decoder(model, quantize, headers if fits_to_cpu else None)
            if fits_to_cpu:
                fit_to_cpu(model)
            if beside is not None:
                attach(model, beside)
        stop_ids = read_stop_ids(folder, tokenizer)
        return cls(model.eval(), tokenizer, stop_ids, folder)

    def compile(self) -> None:
        """Compiles tower, prefill and decode, for CUDA; all answers then use them.

        Compiling happens at the first answers and takes a minute or so; see `fast/compiled.py`.
        Raises `ArgumentError` for quantized weights on a CPU.
        """
        _check_fast_paths(True)
        from .fast.compiled import compile_model

        self.begin_decode = compile_model(self.model)

    def merge_adapter(self) -> None:
        """Adds the adapter, if there is one, into the weights, which are then ordinary ones.

        Raises `ArgumentError` for quantized weights.
        """
        merge_loras(self.model)

    def save_adapter(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes the adapter alone, in PEFT's form. Raises `CheckpointError`."""
        base = "" if self.folder is None else str(self.folder)
        save_adapter(self.model, read_path(folder, "folder", CheckpointError), base, overwrite)

    def save_pretrained(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes the published layout. Raises `CheckpointError` rather than replace anything.

        With `overwrite` the model that is there goes, and nothing else. An adapter is saved by
        `save_adapter`, or merged first.
        """
        if any(loras(self.model)):
            raise CheckpointError(
                "the model has an adapter beside its weights; merge it first, or save it alone"
            )
        dtype = None
        if HAS_FAST_PATHS:
            from .fast.cpu import is_widened
            from .fast.quantized import is_quantized

            if is_quantized(self.model):
                raise CheckpointError(
                    "a model with quantized weights is not saved; load it without quantize"
                )
            dtype = self.model.dtype if is_widened(self.model) else None
        save_checkpoint(
            self.model,
            read_path(folder, "folder", CheckpointError),
            overwrite,
            tokenizer=self.tokenizer,
            stop_ids=self.stop_ids,
            origin=self.folder,
            dtype=dtype,
        )


def _check_fast_paths(wanted: bool) -> None:
    """Raises `ArgumentError` if something of the folder is wanted that was deleted."""
    if wanted and not HAS_FAST_PATHS:
        raise ArgumentError("quantized weights and torch.compile need the folder flashvl/fast")
