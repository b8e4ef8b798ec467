"""The embedded model: its world (scenes, questions), its training and its scoring."""
