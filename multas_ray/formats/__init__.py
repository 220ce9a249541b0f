"""Data formats: readers of what people have."""
