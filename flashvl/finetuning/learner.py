"""The model that learns: its weights, its loss, and what is saved of it."""

from __future__ import annotations

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from ..chat import FlashVL
from ..checkpoint.adapter import matching, save_adapter
from ..checkpoint.files import Headers, open_safetensors, read_headers
from ..checkpoint.save import save_checkpoint
from ..checkpoint.tensor_names import published_name
from ..device import peak_bytes
from ..errors import ArgumentError, CheckpointError
from ..model.lora import add_loras, loras, merge_loras
from ..model.network import FlashVLModel
from ..terminal import end_progress
from ..training.processes import Processes
from ..training.progress import Progress
from ..training.sharding import as_shard, load_shards, save_shards, shard, whole_model, whole_tensor
from ..training.state import State, load_state, save_state, state_tensors
from .batches import Batch, Batches, Step
from .data import Checked
from .recipe import Recipe

# The highest learning rates at the 2B's width; a narrower model takes proportionally higher ones.
LORA_RATE, FULL_RATE, WIDTH = 5e-4, 2e-5, 1536
SHOWN_TOKENS = 64  # of an answer
FEW = 5  # steps, after which it can be said how long all take
BOARD = "tensorboard"  # the folder of its files
STORED = {"BF16": torch.bfloat16, "F16": torch.float16}


class Learner:
    """A model of which some parts learn, or the adapter beside it, in one process or many."""

    def __init__(
        self, recipe: Recipe, name: str, flash: FlashVL, together: Processes, mixed: bool
    ) -> None:
        self.recipe, self.name, self.flash, self.together = recipe, name, flash, together
        self.model, self.mixed = flash.model, mixed
        if self.shards > 1 and any(stage.optimizer == "muon" for stage in recipe.stages):
            raise ArgumentError("muon needs whole matrices; over several devices take adamw")
        if recipe.rank is not None:
            torch.manual_seed(recipe.seed)
            add_loras(self.model, matching(self.model, recipe.pattern), recipe.rank, recipe.alpha)
        self.choose(self.all_parts)
        if recipe.checkpointing:
            keep_inputs_alone(self.model)
        if self.shards > 1:
            shard(self.model, together, mixed)
        self.parameters = self.choose(self.all_parts)
        self.begun = time.monotonic()
        self.measured: dict[str, float] = defaultdict(float)

    @classmethod
    def load(
        cls,
        recipe: Recipe,
        name: str,
        revision: str | None,
        device: torch.device,
        together: Processes,
    ) -> Learner:
        """The model in the number format that the recipe says, ready to learn.

        "auto" is float32 on a CPU; elsewhere bfloat16 beside an adapter, and else float32 weights
        with products in bfloat16 ("mixed").
        """
        dtype = recipe.dtype
        if dtype == "auto":
            elsewhere = "mixed" if recipe.rank is None else "bfloat16"
            dtype = "float32" if device.type == "cpu" else elsewhere
        weights = "bfloat16" if dtype == "bfloat16" else "float32"
        flash = FlashVL.from_pretrained(name, device, weights, revision)
        return cls(recipe, name, flash, together, dtype == "mixed")

    @property
    def default_rate(self) -> float:
        at_width = LORA_RATE if self.recipe.rank is not None else FULL_RATE
        return at_width * WIDTH / self.model.config.decoder.width

    @property
    def shards(self) -> int:
        """Over how many devices the weights are spread; an adapter and its model are on each."""
        return self.together.count if self.recipe.rank is None else 1

    @property
    def narrow(self) -> bool:
        """Whether layers compute in bfloat16."""
        return self.mixed or self.model.dtype == torch.bfloat16

    @property
    def all_parts(self) -> tuple[str, ...]:
        """Those that learn in some stage."""
        return tuple(part for stage in self.recipe.stages for part in stage.train)

    def choose(self, parts: Sequence[str]) -> dict[str, nn.Parameter]:
        """Lets these parts learn, or the adapter if there is one; all else is frozen.

        What is in shards keeps to what it could do at first: then all parts get gradients that
        learn in some stage, but only these are used.
        """
        adapted = self.recipe.rank is not None
        unused = getattr(self.model.vision, "pooling_head", None)
        never = set() if unused is None else set(unused.parameters())
        self.chosen = {}
        for name, one in self.model.named_parameters():
            learns = name.endswith((".a", ".b")) if adapted else name.startswith(tuple(parts))
            learns = learns and one not in never
            if not isinstance(self.model, FSDPModule):
                one.requires_grad_(learns)
            if learns:
                self.chosen[name] = one
        return self.chosen

    def learned(self) -> dict[str, list[nn.Parameter]]:
        """What learns, by part."""
        by_part: dict[str, list[nn.Parameter]] = {}
        for name, one in self.chosen.items():
            by_part.setdefault(name.partition(".")[0], []).append(one)
        return by_part

    def begin(self, optimizers: Sequence[torch.optim.Optimizer], progress: Log) -> None:
        """A stage begins."""
        self.optimizers, self.progress = optimizers, progress
        self.measures()

    def loss(self, step: Step) -> tuple[Tensor, Tensor]:
        """Takes the gradients of a step -> its loss and the share of right labels, both ().

        The loss is the sum over the tokens of all answers, in all processes and parts, divided by
        their number. Raises `ArgumentError` if it is not a finite number.
        """
        sums = self.together.sums(step.answers, step.tokens, step.places)
        self.model.zero_grad(set_to_none=True)  # of what is in no optimizer, too
        answers, self.measured["tokens"] = sums[0], self.measured["tokens"] + sums[1]
        self.measured["places"] += sums[2]
        total = right = torch.zeros((), device=self.model.device)
        for part in step.parts:
            loss, its_right = self.part_loss(part)
            if loss.requires_grad:  # not where the tower alone learns and no picture is
                (loss / answers).backward()
            total, right = total + loss.detach(), right + its_right
        if self.shards == 1:
            self.together.sum_gradients(
                one for one in self.parameters.values() if one.requires_grad
            )
        loss_sum, right_sum = self.together.sums(total.item(), right.item())
        if not math.isfinite(loss_sum):
            raise ArgumentError("the loss is not a finite number any more; take a lower rate")
        return torch.tensor(loss_sum / answers), torch.tensor(right_sum / answers)

    def part_loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the losses of a batch's answers, and how many labels are right, both ()."""
        batch = batch.to(self.model.device)
        autocast = self.mixed and self.shards == 1
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=autocast):
            logits = self.model(
                batch.input_ids,
                batch.pixels,
                batch.grids,
                positions=batch.positions,
                mask=batch.mask,
                logits_at=batch.before_answer,
            )  # (answer tokens, V)
        answers = batch.labels[batch.is_answer]  # (answer tokens)
        loss = F.cross_entropy(logits.float(), answers, reduction="sum")
        return loss, (logits.argmax(-1) == answers).sum()

    @torch.no_grad()
    def held_out_loss(self, samples: Sequence[Checked], batch: int) -> tuple[float, float]:
        """The mean loss of the answers' tokens, and the share of right ones."""
        count = batch * self.together.count
        data = Batches(samples, self.flash.processor, count, batch, self.together, self.shards > 1)
        total = right = answers = 0.0
        for number in range(math.ceil(len(samples) / count)):
            for part in data[number].parts:
                loss, its_right = self.part_loss(part)
                total, right = total + loss.item(), right + its_right.item()
                answers += int(part.is_answer.sum())
        total, right, answers = self.together.sums(total, right, answers)
        return total / answers, right / answers

    def answers(self, samples: Sequence[Checked]) -> Iterator[tuple[str, str, str]]:
        """Of each sample the last question, the right answer, and the greedy one."""
        for one in samples:
            *asked, wanted = one.sample.messages
            said = self.flash.chat(one.sample.image, asked, max_new_tokens=SHOWN_TOKENS)
            yield asked[-1]["content"], wanted["content"], said

    def timed(self, steps: Iterator[Step]) -> Iterator[Step]:
        """The same steps; how long they are waited for is measured."""
        while True:
            start = time.monotonic()
            step = next(steps, None)
            self.measured["waited"] += time.monotonic() - start
            if step is None:
                return
            yield step

    def measures(self) -> dict[str, float]:
        """For a line of the log: rate, speed, padding, waiting and memory since the last one."""
        since, self.begun = time.monotonic() - self.begun, time.monotonic()
        measured, self.measured = self.measured, defaultdict(float)
        return {
            "rate": self.optimizers[-1].param_groups[0]["lr"],
            "tokens_per_second": round(measured["tokens"] / since, 1),
            "padding": round(1 - measured["tokens"] / max(measured["places"], 1), 4),
            "seconds_waiting": round(measured["waited"], 2),
            "peak_bytes": peak_bytes(self.model.device),
        }

    def note(self, done: int, measured: dict[str, float]) -> None:
        end_progress()
        self.progress.note(done, measured)

    def save_state(
        self,
        file: Path,
        settings: dict[str, Any],
        optimizers: Sequence[torch.optim.Optimizer],
        stage: int,
        step: int,
    ) -> None:
        """See `save_state` in training/state.py; all processes call it.

        What is in shards is saved in a folder beside the file, which says whether that is whole.
        """
        if self.shards == 1:
            if self.together.rank == 0:
                save_state(file, self.parameters, settings, optimizers, stage, step)
            self.together.wait()
            return
        folder = shards_beside(file, stage, step)
        if self.together.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # of a save that was killed
        self.together.wait()
        save_shards(folder, self.tensors_in_shards(optimizers if step else ()))
        self.together.wait()
        if self.together.rank == 0:
            save_state(file, {}, settings, (), stage, step)
            for old in file.parent.glob(shards_beside(file, "*", "*").name):
                if old != folder:
                    shutil.rmtree(old, ignore_errors=True)
        self.together.wait()

    def load_state(
        self, file: Path, optimizers: Sequence[torch.optim.Optimizer], state: State
    ) -> None:
        """What any number of processes saved."""
        folder = shards_beside(file, state.stage, state.step)
        if not folder.is_dir():
            load_state(file, self.parameters, optimizers, state, as_shard)
            return
        load_shards(folder, self.tensors_in_shards(optimizers if state.step else ()), self.together)
        for optimizer in optimizers:
            for moments in optimizer.state.values():
                moments["step"].fill_(state.step)

    def tensors_in_shards(self, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, Tensor]:
        """All of a state but how many steps the optimizer has counted: as many as were done."""
        tensors = state_tensors(self.parameters, optimizers)
        return {name: one for name, one in tensors.items() if one.ndim > 0}

    def save(self, folder: Path, merge: bool = False) -> None:
        """The adapter, or the whole model in the published layout, in the place of what is there.

        Weights are stored as those of the model that it began with.
        """
        whole = self.model if self.shards == 1 else whole_model(self.model, self.together)
        if self.together.rank == 0:
            if merge:
                merge_loras(whole)
            if any(loras(whole)):
                save_adapter(whole, folder, self.name, overwrite=True)
            else:
                stored = {header.dtype for header in self._headers().values()}
                save_checkpoint(
                    whole,
                    folder,
                    overwrite=True,
                    tokenizer=self.flash.tokenizer,
                    stop_ids=self.flash.stop_ids,
                    origin=self.flash.folder,
                    dtype=STORED.get(stored.pop()) if len(stored) == 1 else None,
                )
        self.together.wait()

    def frozen_proof(self) -> str:
        """Holds what did not learn against the files that it came from -> what is so.

        Raises `CheckpointError` if a weight has changed.
        """
        vision, headers = self.model.config.vision, self._headers()
        frozen = 0
        for name, one in self.model.named_parameters():
            if name in self.parameters:
                continue
            ours = name.replace(".base.", ".")
            stored = published_name(ours, vision.architecture, vision.tensor_prefix)
            with open_safetensors(headers[stored].file) as file:
                before = file.get_tensor(stored).to(one.dtype)
            if not torch.equal(whole_tensor(one), before):
                raise CheckpointError(f"{stored} was frozen and has changed all the same")
            frozen += 1
        return (
            f"{len(self.parameters)} tensors learned; {frozen} were frozen and are bitwise the same"
        )

    def _headers(self) -> Headers:
        assert self.flash.folder is not None  # it was loaded
        return read_headers(self.flash.folder)


class Log(Progress):
    """The log, and the same for TensorBoard if that package is there."""

    @cached_property
    def board(self) -> Any:
        """TensorBoard's writer, or None."""
        if self.log is None or find_spec("tensorboard") is None:
            return None
        return import_module("torch.utils.tensorboard").SummaryWriter(self.log.parent / BOARD)

    def add(self, step: int, loss: Tensor, share: Tensor, pictures: int) -> None:
        """After a few steps it also says how long the others will take."""
        super().add(step, loss, share, pictures)
        done, left = step + 1 - self.first, self.steps - step - 1
        if self.log is not None and done == FEW and left > 0:
            minutes = (time.monotonic() - self.start) / done * left / 60
            end_progress()
            print(f"{self.stage}: {left} steps are left, about {minutes:.1f} min", flush=True)

    def note(self, done: int, measured: dict[str, float]) -> None:
        super().note(done, measured)
        if self.board is not None:
            for name, value in measured.items():
                self.board.add_scalar(f"{self.stage}/{name}", value, done)
            self.board.flush()


def shards_beside(file: Path, stage: int | str, step: int | str) -> Path:
    """Where the shards of a state lie."""
    return file.parent / f"shards-{stage}-{step}"


def keep_inputs_alone(model: FlashVLModel) -> None:
    """Activation checkpointing: of each layer only the inputs are kept for its gradients."""
    for layer in (*getattr(model.vision, "layers", ()), *model.decoder.layers):
        layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Any, *inputs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
