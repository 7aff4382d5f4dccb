"""What a judged study learned, kept in a file, and applied to candidates that have no truth."""
