"""proxycast: rank corpora and models from the next-token distributions of cheap checkpoints over expert solutions.

The modules are flat, one subject each, and import only what stands before them in this order: `options`, `tables` and
`jobs`, on which all stand; `solutions`, `token_stats`, `engines`; `proxies`, `ranking`, `compute`; `miniature`, a suite
of 25 corpora that trains itself, so that everything can be run on a laptop; `config` and `config_reference`;
`checkpoints`, `extraction`, `targets`, `checks`; `data_selection`; `labels` and `plots`.
"""
