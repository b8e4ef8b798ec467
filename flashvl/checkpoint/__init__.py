"""Models as files: found or downloaded, read, checked, loaded, saved."""
