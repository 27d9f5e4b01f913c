"""When the next connection is tried: pure, so that ten thousand can be tried at once.

    begin        at once; after a life that ended without a goodbye, as in a blackout, uniform(0, the server's window)
    lost         uniform(0, the server's window), or as when it isn't made where that is longer
    not made     full jitter: uniform(0, min(most, first * 2^tries)); where the window is longer, (1/2 to 3/2) * window: so those who
                 wait for a broker that is away come at the limit's rate, whenever it is back
    taken over   (1/2 to 1) * min(1 h, 30 s * 2^times): two of one name mustn't throw each other out for ever
    refused      a connection on which the broker refuses something is left after (1/2 to 1) * min(1 h, 60 s * 2^times): permissions that
                 somebody has mended meanwhile hold from the next one on

MQTT 5 has a code for a connection that was taken over. In 3.1.1, and by mosquitto before 2.0.15 in both, it is ended without a word: RIVAL_TIMES
within STABLE_SECONDS of connecting, with no try between that failed, are taken for it, and then waited for as long as after failures at most, since it may be the broker.
A broker's process that dies takes its port along: so whoever is about to be `suspected` looks first whether that is still open.
"""

from random import Random

STABLE_SECONDS = 10.0  # a connection that lasted so long starts the back-off anew
TAKEN_FIRST, TAKEN_MOST = 30.0, 3600.0
QUIET_SECONDS = 2 * TAKEN_MOST  # a connection that lasted so long says that the other one is gone
RIVAL_TIMES = 3
REFUSED_FIRST, REFUSED_MOST = 60.0, 3600.0


class Backoff:
    """Of one client; `window` is the server's, all times are in seconds."""

    def __init__(self, random: Random, first: float = 1.0, most: float = 300.0) -> None:
        self._random, self._first, self._most = random, first, most
        self.window = 0.0
        self._tries = self._taken = self._short = self._refusals = 0

    def begin(self) -> float:
        """Before the first connection, after a life that ended without a goodbye: all of the fleet may be here again at this moment."""
        return self._random.uniform(0, self.window)

    @property
    def rival(self) -> bool:
        """Whether it is likely that another one connects by the same name."""
        return bool(self._taken) or self._short >= RIVAL_TIMES

    def suspected(self, lasted: float | None) -> bool:
        """Whether a connection that lasted so long and ended without a word would be taken for another one's work."""
        return lasted is not None and lasted < STABLE_SECONDS and self._short + 1 >= RIVAL_TIMES

    def refused(self) -> float:
        """How long a connection is kept on which the broker has just refused something."""
        self._refusals += 1
        return self._random.uniform(0.5, 1) * min(REFUSED_MOST, REFUSED_FIRST * 2.0 ** min(self._refusals - 1, 30))

    def after(self, lasted: float | None, *, taken_over: bool = False, hung_up: bool = False) -> float:
        """The wait after a connection: how long it lasted (None: it wasn't made), and whether the broker said that another one took it
        over, or hung up without a word, and listens still."""
        if lasted is not None and lasted > REFUSED_MOST:
            self._refusals = 0
        self._tries = 1 if lasted is not None and lasted > STABLE_SECONDS else self._tries + 1
        most = min(self._most, self._first * 2.0 ** min(self._tries - 1, 30))
        if lasted is None:
            self._short = 0  # a broker that is away is what hung up, not a rival
            if self.window > most:
                return self._random.uniform(0.5, 1.5) * self.window
        else:
            most = max(most, self.window)
            self._taken = (self._taken if lasted < QUIET_SECONDS else 0) + taken_over
            self._short = self._short + 1 if hung_up and lasted < STABLE_SECONDS else 0
        if taken_over:
            return self._random.uniform(0.5, 1) * min(TAKEN_MOST, TAKEN_FIRST * 2.0 ** min(self._taken - 1, 30))
        if self._short >= RIVAL_TIMES:
            least = min(self._most, TAKEN_FIRST * 2.0 ** min(self._short - RIVAL_TIMES, 30))
            return self._random.uniform(0.5, 1) * max(most, least)
        return self._random.uniform(0, most)
