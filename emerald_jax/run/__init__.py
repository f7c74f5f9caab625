"""A run on disk: its directory, log, checkpoints, replay, weights and recordings."""
