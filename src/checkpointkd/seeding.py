"""Every random draw is a pure function of what it is for: a seed, a purpose, an epoch, an image's index.

So a resumed run draws what an undisturbed one would have drawn, and nothing about a generator needs saving.
Letters in names: N images.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(*keys: int | str) -> int:
    """A seed in [0, 2⁶³) for this purpose; other keys, other and independent seeds.

    >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    True
    """
    digest = hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """A CPU generator for this purpose, the same on every machine."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def hashed_uniform(index_N: Tensor, below: int, *keys: int | str) -> Tensor:
    """One integer in [0, below) for each index, drawn by hashing (keys, index): whatever the order, batch or device.

    The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) in wrapping 64-bit arithmetic.

    >>> whole = hashed_uniform(torch.arange(10), 162, "views", 0)
    >>> torch.equal(hashed_uniform(torch.tensor([7, 2]), 162, "views", 0), whole[[7, 2]])
    True
    """
    # 31 bits: the modulo's bias is below 10⁻⁷ for the few hundred views there are
    return _shift(hashed_words(index_N, *keys), 33) % below


def hashed_words(index_N: Tensor, *keys: int | str) -> Tensor:
    """64 bits for each index, by hashing (keys, index)."""
    state = index_N.to(torch.int64) * _signed(0x9E3779B97F4A7C15) + derive_seed(*keys)
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """A logical right shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    return constant - (1 << 64) if constant >= 1 << 63 else constant
