"""The paper's claims on small real data; docs/results.md tells what came out.

    python -m experiments.large_batch     runs what is missing in results/large_batch.json
    python -m experiments.plot            figures and tables of docs/ from results/

data.py has the images, training.py the networks and one run, runs.py the grids and their
results, plot.py figures and tables. Every other file is one experiment.
"""
