"""Exit codes of the commands."""

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NO_BROKER = 0, 1, 2, 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
