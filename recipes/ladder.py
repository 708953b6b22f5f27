import sys

from hf_plasticity.cli import main


if __name__ == "__main__":
    sys.exit(main(["ladder", *sys.argv[1:]]))
