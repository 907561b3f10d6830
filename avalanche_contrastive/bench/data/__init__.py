"""Streams from data: downloads, your own files, arrays in memory, and their augmentations."""
