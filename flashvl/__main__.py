"""`flashvl` and `python -m flashvl`."""

import signal
import sys


def main() -> int:
    """The command line; Ctrl-C while it is imported, or while Python ends, is quiet too."""
    try:
        from .cli import main

        return main()
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
