"""False alarms, power, bias and coverage of the onset rules and of the law, by simulation (docs/evidence.md)."""

import argparse

from hf_plasticity.analysis.simulation import tables


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=1000, help="simulated runs of each kind (default: 1000)")
    print(tables(parser.parse_args().replicates))
