"""Published checkpoints, small enough for a test."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig

from hf_plasticity.data.tokenizers import byte_tokenizer
from hf_plasticity.published.checkpoints import training_step


WIDTH = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
COMMON = {"vocab_size": 257, "max_position_embeddings": 32, "bos_token_id": 256, "eos_token_id": 256}
FAMILIES = {
    "gpt2": GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=257, eos_token_id=256),
    "neox": GPTNeoXConfig(**WIDTH, **COMMON),
    "llama": LlamaConfig(**WIDTH, **COMMON, pad_token_id=256),
}
# fmt: off
PROBE_FLAGS = [
    "--probe_steps=4", "--probe_eval_every=2", "--probe_eval_sequences=4", "--probe_batch_size=4",
    "--context_length=32", "--probe_language=syn9", "--disable_tqdm=true", "--use_cpu",
]
# fmt: on


def save_suite(folder, family, steps=(0, 4, 16)):
    """Checkpoints `step0`, `step4`, … of a family, each with different weights."""
    for step in steps:
        torch.manual_seed(step)
        AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(folder / f"step{step}")
        byte_tokenizer().save_pretrained(folder / f"step{step}")
    return folder


def publish(hub, repo_id, folder):
    repository = hub.create(repo_id)
    for checkpoint in sorted(folder.iterdir(), key=lambda path: training_step(path.name)):
        files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        repository.branches[checkpoint.name] = repository.branches["main"][:1]
        hub.add(repository, checkpoint.name, checkpoint.name, files)
    hub.add(repository, "main", "final", files)
