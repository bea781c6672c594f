"""What a recipe needs of a machine."""
