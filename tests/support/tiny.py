"""Models and text small enough to train in a test."""

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from hf_plasticity.data.sources.base import Source


VOCABULARY = 61
CONTEXT = 12


def tiny_model(family: str = "gpt2", dropout: float = 0.1, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    common = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    if family == "gpt2":
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT, **rates, **common))
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        attention_dropout=dropout,
        pad_token_id=0,
        **common,
    )
    return LlamaForCausalLM(config)


def random_blocks(count: int, seed: int = 0, context: int = CONTEXT) -> np.ndarray:
    """Token ids that a model can learn, because each predicts the next well: `(count, context)`."""
    generator = np.random.default_rng(seed)
    steps = generator.choice([1, 1, 1, 7], size=(count, context - 1))
    start = generator.integers(0, VOCABULARY, size=(count, 1))
    return np.concatenate([start, start + np.cumsum(steps, axis=1)], axis=1) % VOCABULARY


class ListedSource(Source):
    """Numbered documents in batches of three; `read` says which batches were asked for."""

    def __init__(self, documents=60, fails_at=None):
        self.documents, self.fails_at, self.read = documents, fails_at, []

    def texts(self, language):
        return [f"{language}{number} " * (number % 7 + 1) for number in range(self.documents)]

    def fingerprint(self, language):
        return f"listed-{language}-{self.documents}"

    def batches(self, language, state=None):
        texts = self.texts(language)
        for start in range((state or {"document": 0})["document"], len(texts), 3):
            if self.fails_at is not None and start >= self.fails_at:
                raise OSError("unplugged")
            self.read.append(start)
            yield texts[start : start + 3], {"document": start}
