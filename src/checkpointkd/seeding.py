"""Random draws as pure functions of their keys: a seed, a purpose, an epoch, an image's index.

A resumed run therefore draws what an uninterrupted run would have drawn, and no generator state needs saving.
Letters in names: N images.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def derive_seed(*keys: int | str) -> int:
    """Return the seed in [0, 2⁶³) of these keys; different keys have independent seeds.

    >>> derive_seed(0, "order", 3) == derive_seed(0, "order", 3) != derive_seed(0, "order", 4)
    True
    """
    digest = hashlib.blake2b("\x1f".join(map(str, keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded from these keys; its draws are the same on every machine."""
    return torch.Generator().manual_seed(derive_seed(*keys))


@contextlib.contextmanager
def seeded(*keys: int | str) -> Iterator[None]:
    """Seed the global generators of torch, random and numpy, which transforms draw from, and restore them."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    seed = derive_seed(*keys)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def hashed_uniform(index_N: Tensor, below: int, *keys: int | str) -> Tensor:
    """Return one integer in [0, below) per index, a hash of (keys, index).

    The draw of an index does not depend on the order of the indices, the batch or the device.

    >>> draws = hashed_uniform(torch.arange(10), 162, "views", 0)
    >>> torch.equal(hashed_uniform(torch.tensor([7, 2]), 162, "views", 0), draws[[7, 2]])
    True
    """
    # Of 31 bits, the modulo's bias is below 10⁻⁶ for a few hundred views.
    return _shift(hashed_words(index_N, *keys), 33) % below


def hashed_words(index_N: Tensor, *keys: int | str) -> Tensor:
    """Return 64 bits per index, a hash of (keys, index).

    The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) in wrapping 64-bit arithmetic.
    """
    state = index_N.to(torch.int64) * _signed(0x9E3779B97F4A7C15) + derive_seed(*keys)
    state = (state ^ _shift(state, 30)) * _signed(0xBF58476D1CE4E5B9)
    state = (state ^ _shift(state, 27)) * _signed(0x94D049BB133111EB)
    return state ^ _shift(state, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right logically; `>>` on tensors keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit constant."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant
