"""`flashvl` and `python -m flashvl`."""

from __future__ import annotations

import signal
import sys
import threading
from _thread import interrupt_main


def main() -> int:
    """The command line; Ctrl-C while it is imported, or while Python ends, is quiet too."""
    sys.unraisablehook = _interrupt_again
    try:
        from .cli import main

        return main()
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt_again(swallowed: sys.UnraisableHookArgs) -> None:
    """Ctrl-C inside a finalizer, where nothing can be raised, comes again a moment later."""
    if isinstance(swallowed.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, interrupt_main).start()
    else:
        sys.__unraisablehook__(swallowed)


if __name__ == "__main__":
    sys.exit(main())
