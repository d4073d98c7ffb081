"""What comes out of a model: answers to prompts."""
