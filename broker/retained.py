"""What the broker is to retain of a federation's objects: the chunks of what is offered, and nothing of what was."""

from collections.abc import Iterable

from fleetgrad.broker import events as ev
from fleetgrad.broker.announcing import Announcer
from fleetgrad.broker.offering import Offer


class Retained:
    """Follows an offer; what the last start has left on the broker is cleared with the first connection."""

    def __init__(self, say: Announcer, offer: Offer) -> None:
        self._say, self._offer = say, offer
        self._left = offer.sweep()

    def again(self) -> list[ev.Effect]:
        """On a new connection: all of it, objects before the head that names them."""
        effects = self._say.roots()
        for ref in self._offer.refs():
            effects += self._say.chunks(ref)
        for ref in (*self._offer.former(), *self._left):
            effects += self._say.clear(ref)
        self._left = []
        return effects

    def renew(self, held: Iterable[str], *, connected: bool) -> list[ev.Effect]:
        """A new version has come; `held` is as in Offer.renew. Without a connection all is left to `again`."""
        gone = self._offer.renew(held)
        effects: list[ev.Effect] = []
        if connected:
            for new in self._offer.newest():
                effects += self._say.chunks(new)
            for old in (*gone, *self._offer.former()[-1:]):
                effects += self._say.clear(old)
        return effects
