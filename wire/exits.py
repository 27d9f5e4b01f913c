"""Exit codes of the commands."""

import errno

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NO_BROKER = 0, 1, 2, 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def refused(error: ValueError) -> int:
    """The code of an input that is refused: it stays wrong until somebody mends it, unless it is the disk that couldn't read it."""
    cause = error.__cause__
    return EXIT_FAILED if isinstance(cause, OSError) and cause.errno in (errno.EIO, errno.ESTALE) else EXIT_USAGE
