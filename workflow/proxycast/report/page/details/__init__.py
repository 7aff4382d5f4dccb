"""What a section shows below its first figures: the evidence, and what a choice costs."""
