"""Our runs compared with published numbers: one table and one figure per benchmark."""
