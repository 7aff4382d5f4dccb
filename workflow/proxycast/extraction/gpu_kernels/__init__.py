"""Kernels of Triton behind `token_stats_triton`, in the files of this folder."""
