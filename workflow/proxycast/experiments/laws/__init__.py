"""Laws that what is measured follows: over a training run, over sizes of models."""
