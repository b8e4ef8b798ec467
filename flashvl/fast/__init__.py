"""Faster ways to run the same network. Without this folder all still runs, slower."""
