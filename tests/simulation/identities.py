"""Identities and their renewal: the registrar names a device's next key, and device and aggregator hear of it, each in its own time.

Both keep what they heard over crashes. Until the other one has heard as well, what a device signs isn't believed: it must be said
again by the next key, and nothing of it may be lost or counted twice.
"""

import hashlib
from functools import cache, lru_cache

from fleetgrad.wire.signing import PrivateKey

SIGNATURES_KEPT = 500  # of each identity


@cache
def key_of(name: str, generation: int = 0) -> PrivateKey:
    """An identity that doesn't work out again what it has signed or verified before: a fifth of a run's time."""
    key = PrivateKey.from_seed(
        hashlib.sha256(f"{name} {generation}".encode() if generation else name.encode()).digest()
    )
    key.sign = lru_cache(SIGNATURES_KEPT)(key.sign)  # type: ignore[method-assign]
    key.public.verify = lru_cache(SIGNATURES_KEPT)(key.public.verify)  # type: ignore[method-assign]
    return key


class BoardKey(PrivateKey):
    """The identity of one board, which becomes its next one while whoever holds it goes on."""

    def __init__(self, name: str) -> None:
        super().__init__(key_of(name)._key)
        self.name, self.generation = name, 0
        self.public = key_of(name).public

    def renew(self) -> None:
        """The registrar's word has come."""
        self.generation += 1
        self.become(key_of(self.name, self.generation))

    def sign(self, data: bytes) -> bytes:
        return key_of(self.name, self.generation).sign(data)
