"""The model: its forward pass, how it is sharded, and where its weights come from and go to."""
