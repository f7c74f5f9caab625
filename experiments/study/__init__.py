"""What studies share: plans, trained worlds, measures, results."""
