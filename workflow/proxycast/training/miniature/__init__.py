"""A DataDecide that trains itself: 25 small corpora, models of several architectures, sizes and seeds, and problems.

``problems`` (what is asked) -> ``sources`` (the documents that corpora are drawn from) -> ``recipes`` (a corpus from
the pool) -> ``llama`` and ``gpt`` (the models, saved as ordinary Hugging Face folders) -> ``train_corpus`` (the loop,
and its checkpoints). The two models have the same three functions: ``initialise``, ``logits`` and ``save_folder``.
"""
