"""Data selection: which corpus is best, told from small models. `data_tables` is the experiment."""
