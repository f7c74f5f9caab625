"""ONE agent: its networks and state, how it acts, how it dreams."""
