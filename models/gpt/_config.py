"""The sizes of a GPT."""

from __future__ import annotations

import dataclasses

from jgraph._errors import InputError


@dataclasses.dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT.

    Args:
        vocab_size: number of different tokens V; 256 where the tokens are bytes.
        context: the most tokens it sees at once.
        width: length D of a token's features.
        depth: number of blocks.
        heads: attention heads of a block; they divide the width among them.
        dropout: part of the features that training zeroes, after the embeddings and after each
            attention and MLP.

    Raises:
        InputError: a size is below 1, the heads don't divide the width, or dropout isn't in
            [0, 1).

    Example:
        >>> GPTConfig.gpt2().width
        768
    """

    vocab_size: int = 256
    context: int = 256
    width: int = 256
    depth: int = 6
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise InputError(
                f"heads must divide width, got {self.heads} heads and width {self.width}"
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be from 0 up to, not including, 1, got {self.dropout}")

    @classmethod
    def tiny(cls) -> GPTConfig:
        """Return the preset for a laptop: bytes as tokens, 0.9 million parameters."""
        return cls(vocab_size=256, context=128, width=128, depth=4, heads=4)

    @classmethod
    def gpt2(cls, vocab_size: int = 50257) -> GPTConfig:
        """Return the sizes of the smallest GPT-2: 124 million parameters, the head not counted."""
        return cls(vocab_size, context=1024, width=768, depth=12, heads=12, dropout=0.1)
