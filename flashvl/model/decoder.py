"""The Qwen2 decoder: embeddings in, hidden states out, a cache if tokens come one by one.

Source: Qwen2 (arXiv 2407.10671) as published: RoPE, grouped-query attention with bias on
query, key and value alone, SwiGLU, RMSNorm before each part.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import DecoderConfig
from .cache import Cache
from .layers import RMSNorm, SwiGLU


class Decoder(nn.Module):
    """embeddings (B, T, D) -> hidden states (B, T, D) after the last norm.

    With a cache the T tokens follow those already in it, and it says where they stand and what
    they attend to; `positions` (B, T) and `mask` (B, 1, T, seen + T), true where a token may
    attend, say otherwise. `head` turns hidden states into logits (B, T, V); it is apart so that
    it is run where logits are wanted alone.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        if config.tied_head:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x, tokens = embeddings, embeddings.shape[1]
        if cache is not None:
            positions = cache.positions(tokens) if positions is None else positions  # (B or 1, T)
            mask = cache.mask(tokens) if mask is None else mask
        elif positions is None:
            positions = torch.arange(tokens, device=x.device)[None]  # (1, T)
        rotation = rope_rotation(self.config, positions, x.dtype)  # 2 x (B or 1, 1, T, head width)
        for layer in self.layers:
            x = layer(x, rotation, mask, cache)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x)


class DecoderLayer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x). (B, T, D) -> (B, T, D)."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.eps)
        self.attention = DecoderAttention(config, index)
        self.mlp_norm = RMSNorm(config.width, config.eps)
        self.mlp = SwiGLU(config.width, config.mlp_width)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, mask, cache)
        return x + self.mlp(self.mlp_norm(x))


class DecoderAttention(nn.Module):
    """Causal attention in which H / K query heads share one key/value head.

    (B, T, D) -> (B, T, D).
    """

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.head_width = config.head_width
        query_width = config.heads * config.head_width
        key_value_width = config.key_value_heads * config.head_width
        self.query = nn.Linear(config.width, query_width)
        self.key = nn.Linear(config.width, key_value_width)
        self.value = nn.Linear(config.width, key_value_width)
        self.output = nn.Linear(query_width, config.width, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        split = (-1, self.head_width)
        q = self.query(x).unflatten(-1, split).transpose(1, 2)  # (B, H, T, head width)
        k = self.key(x).unflatten(-1, split).transpose(1, 2)  # (B, K, T, head width)
        v = self.value(x).unflatten(-1, split).transpose(1, 2)  # (B, K, T, head width)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if cache is not None:
            k, v = cache.append(self.index, k, v)  # (B, K, seen + T, head width)
        return self.output(attend(q, k, v, mask))  # (B, T, D)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention in which H / K query heads share one key/value head.

    (B, H, T, head width), 2 x (B, K, seen + T, head width) -> (B, T, H * head width). Without a
    mask several tokens are causal with nothing before them, and one token sees all.
    """
    if q.shape[2] == 1:
        # As rows of their key/value head the query heads need no copies of it.
        q = q.view(q.shape[0], k.shape[1], -1, q.shape[3])  # (B, K, H / K, head width)
        x = F.scaled_dot_product_attention(q, k, v, mask)  # (B, K, H / K, head width)
        return x.flatten(1)[:, None]  # (B, 1, H * head width)
    is_causal = mask is None
    x = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=True)
    return x.transpose(1, 2).flatten(2)  # (B, T, H * head width)


def rope_rotation(
    config: DecoderConfig, positions: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles of positions (B, T); computed in float32.

    2 x (B, 1, T, head width), the same for all heads.
    """
    half = torch.arange(
        0, config.head_width, 2, device=positions.device, dtype=torch.float32
    )  # (head width / 2)
    frequencies = 1.0 / config.rope_theta ** (half / config.head_width)  # (head width / 2)
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, T, head width / 2)
    angles = angles.repeat(1, 1, 1, 2)  # (B, 1, T, head width)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (i, i + half) of each head by their angle. (..., T, head width), same out."""
    cosine, sine = rotation
    first, second = x.chunk(2, dim=-1)  # 2 x (..., T, head width / 2)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine
