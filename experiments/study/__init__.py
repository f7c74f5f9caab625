"""The machinery of the studies: plans, trained world models, measures, results."""
