"""`flashvl download`: a repository into the hub's cache on disk; without torch."""

from __future__ import annotations

import argparse

from ..checkpoint.hub import download


def run(options: argparse.Namespace) -> None:
    """Prints the folder. Raises `DownloadError`."""
    print(download(options.repository, options.revision))
