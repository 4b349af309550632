"""What a model is trained for: tasks by name, or your own table, as rows to train and to evaluate on."""
