"""What post-training changes: methods among bases and post-trained models, a claim about them, and why."""
