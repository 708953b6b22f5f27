"""A tiny random model of every supported family, built from its configuration: nothing is downloaded."""

from transformers import (
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)


VOCAB = 64
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GROUPED = SHAPE | {"intermediate_size": 40, "num_key_value_heads": 2, "max_position_embeddings": 64}
WINDOW = 8

CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3, resid_pdrop=0.1
    ),
    "gpt_neox": GPTNeoXConfig(**SHAPE, intermediate_size=40, max_position_embeddings=64),
    "llama": LlamaConfig(**GROUPED, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(
        **GROUPED, head_dim=8, use_sliding_window=True, sliding_window=WINDOW, layer_types=None, max_window_layers=1
    ),
    "mistral": MistralConfig(**GROUPED, sliding_window=WINDOW),
    "olmo2": Olmo2Config(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "phi3": Phi3Config(**GROUPED),
    "opt": OPTConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=40,
        word_embed_proj_dim=24,
        max_position_embeddings=64,
        init_std=0.3,
    ),
}
# The layers whose queries see WINDOW keys at most.
SLIDING_LAYERS = {"qwen3": {1}, "mistral": {0, 1}, "gemma2": {0}}
