"""A DataDecide that trains itself: 25 small corpora, Llamas of several sizes and seeds, problems with worked solutions.

``problems`` (what is asked) -> ``sources`` (the documents that corpora are drawn from) -> ``recipes`` (a corpus from
the pool) -> ``llama`` (the model, saved as an ordinary Hugging Face folder) -> ``pretraining`` (the loop and its
checkpoints).
"""
