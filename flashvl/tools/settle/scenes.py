"""What a model is asked: questions about scenes of nano's world, whose right answers are known."""

from __future__ import annotations

from ...config import TilerConfig
from ...nano.world.scenes import scene, scoring_number
from .measure import Sample

SEED = 16  # scenes that neither training nor the score of nano's README draws
KINDS = ("color", "shape", "count", "number", "presence", "description", "list")
# The sides of a picture in cores of a tile: from a single tile to more than any grid has.
SIDES = (0.95, 7.6)
MAX_ASPECT_RATIO = 8.0  # few pictures reach it; only they tell how many tiles a row may have
# How large models were taught to answer in a word. Source: LLaVA-1.5 (arXiv 2310.03744).
BRIEFLY = {
    "en": "\nAnswer the question using a single word or phrase.",
    "zh": "\n请用一个词或短语回答问题。",
}


def scene_sample(index: int, tiler: TilerConfig, briefly: bool = False) -> Sample:
    """The scene of an index, from 0, at a size that gives this model one tile or many.

    `briefly` asks for a short answer in so many words, which nano has never read.
    """
    shortest, longest = (round(side * tiler.core_size) for side in SIDES)
    drawn = scene(
        scoring_number(SEED, index), (shortest, longest), max_aspect_ratio=MAX_ASPECT_RATIO
    )
    conversations = []
    for question in drawn.questions:
        if question.kind in KINDS:
            text = question.text + (BRIEFLY[question.language] if briefly else "")
            conversations.append(([{"role": "user", "content": text}], question.answer))
    return Sample(f"scene {index + 1}", drawn.picture, conversations)
