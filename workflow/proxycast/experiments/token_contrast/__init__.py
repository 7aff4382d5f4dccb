"""Two candidates token by token: which tokens decide a proxy, and how each of them was read over training."""
