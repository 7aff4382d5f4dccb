"""Post-training of the miniature bases, by the recipes of the field.

``worked_solutions`` (questions and solutions of the training side of the split, as tokens) -> ``text_sampling`` (what a
model writes) -> ``objectives`` (the losses) -> ``fine_tuning``, ``policy_gradient`` and ``preferences`` (the loops)
-> ``course`` and ``post_train`` (all recipes of one base, as ordinary Hugging Face folders) and ``teacher`` (what
distillation reads).
"""
