"""One run and many: methods, recipes, warm starts, preparing and recording a run, and grids of runs in processes of their own."""
