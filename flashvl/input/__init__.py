"""From a picture and messages to a prompt: pixels, token ids, grids."""
