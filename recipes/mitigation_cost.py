"""
Measure the cost of each mitigation: CPU time per step and per event, and memory.

    python recipes/mitigation_cost.py --sizes 25K --rounds 12
    python recipes/mitigation_cost.py --sizes 2.5M --sequences 4 --rounds 2

Prints the tables of docs/mitigations.md. The time is CPU time in one thread, so that it does not depend on other
programs. Rounds of all methods alternate. Times are medians over the rounds.
"""

import argparse
import copy
import time
from statistics import median

import torch
from transformers import GPT2LMHeadModel

from hf_plasticity import gpt2_config
from hf_plasticity.mitigations import MITIGATIONS, make_mitigation


# Arguments with which every method acts at the end of a round. Other arguments have their defaults.
ROUND = 10
ACTING = {
    "redo": {"threshold": 0.5, "every": ROUND},
    "random_reset": {"threshold": 0.5, "every": ROUND},
    "grama": {"threshold": 0.5, "every": ROUND, "grace": 0},
    "cbp": {"replacement_rate": 1.0, "maturity": 1},
    "swr": {"every": ROUND},
    "head_reset": {"collapsed_threshold": 1.0, "sink_threshold": 1.0, "every": ROUND},
    "active_forgetting": {"every": ROUND},
    "snr": {"max_gap": 5, "patience": 2},
}
CONTEXT_LENGTH, VOCABULARY = 128, 257


class Training:
    """A model with its optimizer and one mitigation, or none."""

    def __init__(self, model: GPT2LMHeadModel, name: str | None):
        self.model, self.step = copy.deepcopy(model).train(), 0
        decayed = [one for one in self.model.parameters() if one.ndim >= 2]
        others = [one for one in self.model.parameters() if one.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
        self.mitigation = None if name is None else make_mitigation(name, ACTING.get(name))
        if self.mitigation is not None:
            self.mitigation.attach(self.model, self.optimizer, task_steps=ROUND)

    def round(self, tokens: torch.Tensor) -> tuple[float, float]:
        """Train for a round; the median time of a step, and of the event at the end of the round, in milliseconds."""
        steps = []
        for _ in range(ROUND):
            self.step += 1
            start = time.process_time()
            self.model(input_ids=tokens, labels=tokens).loss.backward()
            if self.mitigation is not None:
                self.mitigation.before_step(self.step)
            self.optimizer.step()
            if self.mitigation is not None:
                self.mitigation.after_step(self.step)
            self.optimizer.zero_grad()
            steps.append(1000 * (time.process_time() - start))
            start = time.process_time()
            if self.mitigation is not None:
                self.mitigation.step_end(self.step)
        if self.mitigation is not None:
            self.mitigation.task_end(self.step)
        return median(steps), 1000 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["25K", "2.5M"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=16, help="sequences of 128 tokens in a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for size in options.sizes:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(gpt2_config(size, VOCABULARY, CONTEXT_LENGTH))
        tokens = torch.randint(VOCABULARY, (options.sequences, CONTEXT_LENGTH))
        trainings = {name: Training(model, name) for name in (None, *MITIGATIONS)}
        times = {name: [] for name in trainings}
        for number in range(options.rounds + 1):
            for name, training in trainings.items():
                measured = training.round(tokens)
                if number:  # the first round warms up
                    times[name].append(measured)
        base = median(step for step, _ in times[None])
        memory = sum(one.numel() * one.element_size() for one in model.parameters())
        print(
            f"\n{size}: a step of {options.sequences} sequences without mitigation takes {base:.1f} ms; "
            f"weights take {memory / 1e6:.2f} MB\n"
        )
        print("| method | added in a step | event | memory |\n|---|---|---|---|")
        for name, training in trainings.items():
            if training.mitigation is not None:
                added = median(step - none for (step, _), (none, _) in zip(times[name], times[None]))
                event = median(one for _, one in times[name])
                held = training.mitigation.state_bytes() / 1e6
                print(f"| `{name}` | {added:+.2f} ms ({100 * added / base:+.0f}%) | {event:.2f} ms | {held:.2f} MB |")


if __name__ == "__main__":
    main()
