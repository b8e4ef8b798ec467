"""The embedded model: its world, the recipe of its training, and how it is scored."""
