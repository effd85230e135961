"""Grids of training runs: what a change of the recipe is worth, with seeds, intervals and paired tests."""
