"""Losses, optimizer, the train step and the loop around it; nothing here knows where rows come from."""
