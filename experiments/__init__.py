"""Studies, one short file each: ``python -m experiments.latent``; see README.md."""
