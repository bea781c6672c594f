"""How good a model's answers are: AlpacaEval, MT-Bench, how much a judge is to be trusted, and how sure all that is."""
