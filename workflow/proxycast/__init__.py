"""proxycast: rank corpora and models from the next-token distributions of cheap checkpoints over expert solutions.

The modules are flat, one subject each. Read them in the order of the data: ``config`` -> ``checkpoints`` -> ``solutions`` ->
``token_stats`` -> ``engines`` -> ``proxies`` -> ``targets`` -> ``ranking`` and ``compute`` -> ``plots``. ``options`` and ``tables`` are what
all of them stand on. ``miniature`` is a suite of 25 corpora that trains itself, so that everything can be run on a laptop.
"""
