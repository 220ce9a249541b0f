"""Trained networks in use: on images of any size, scored on any split, exported."""
