"""Data sets: schema, readers, the plan of a run, transforms, and the Ray Data stream."""
