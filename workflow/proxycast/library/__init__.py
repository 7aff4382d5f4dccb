"""The library for notebooks and training loops: models scored without a study and without Snakemake."""
