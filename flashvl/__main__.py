"""`flashvl` and `python -m flashvl`."""

import sys


def main() -> int:
    """The command line; Ctrl-C while it is being imported ends it quietly too."""
    try:
        from .cli import main

        return main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
