"""What a run tells: ``logger.py`` writes rows of JSON, TensorBoard and lines for a person."""
