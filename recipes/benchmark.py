from hf_plasticity.benchmark.command import main
from hf_plasticity.cli import errors_on_one_line


if __name__ == "__main__":
    with errors_on_one_line("benchmark.py"):
        main()
