"""Every option of a configuration, as strict models, and the translation of their errors."""
