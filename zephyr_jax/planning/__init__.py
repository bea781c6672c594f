"""What a recipe needs of a machine: of one that is here, and of GPUs that are not."""
