"""What every benchmark shares: harness, FLOP counts, reports, figures, the command."""
