"""Tasks: what each adds to rows, network, losses and scores."""
