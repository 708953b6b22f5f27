"""The effect of each setting of the text."""

from hf_plasticity.data.config import DataConfig
from hf_plasticity.settings import MACHINE, NUMERICS, roles_of


def test_only_paths_and_streaming_do_not_affect_the_numbers():
    roles = roles_of(DataConfig)
    machine = {"data_dir", "data_cache_dir", "streaming"}
    assert {name for name, role in roles.items() if role == MACHINE} == machine
    assert {role for name, role in roles.items() if name not in machine} == {NUMERICS}
    assert {"train_tokenizer", "permute_tokens", "fresh_languages"} <= roles.keys()
