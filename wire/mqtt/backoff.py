"""How long to wait for the next try: full jitter, and not before the turn that the server's window gives.

    first try after a session      uniform(0, max(window, first))
    next tries                     uniform(0, max(2 window, min(most, first * 2^(tries - 1))))

Full jitter: M. Brooker, "Exponential backoff and jitter" (AWS, 2015). The window is fleet / limit, so that a fleet whose broker has died
comes back at the limit. A try that found the broker still away takes its turn again: were it only backed off, the early ones would come
back within seconds, beside those whose turn it is; twice the window, because a fleet that tries each uniform(0, 2 W) tries once in W.
"""

from random import Random

MOST_DOUBLINGS = 30


def retry_delay(tries: int, *, window: float, first: float, most: float, random: Random) -> float:
    """Seconds until the next try; `tries` have failed, or ended early, in a row, from 1 on; `window` is the server's, in seconds."""
    longest = min(most, first * 2.0 ** min(tries - 1, MOST_DOUBLINGS))
    return random.uniform(0, max(longest, window if tries == 1 else 2 * window))
