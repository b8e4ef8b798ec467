"""From a prompt to an answer, token by token."""
