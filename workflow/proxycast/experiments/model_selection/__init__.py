"""Model selection: which model is best at a task that it was not measured on. `model_tables` is the experiment."""
