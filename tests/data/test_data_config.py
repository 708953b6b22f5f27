"""The effect of each setting of the text."""

from hf_plasticity.data.config import DataConfig
from hf_plasticity.settings import MACHINE, NUMERICS, roles_of


def test_only_paths_commits_and_streaming_do_not_identify_a_run():
    roles = roles_of(DataConfig)
    # Commits are part of the fingerprint of the text, which a run compares when it resumes.
    machine = {"data_dir", "data_cache_dir", "dataset_commits", "streaming"}
    assert {name for name, role in roles.items() if role == MACHINE} == machine
    assert {role for name, role in roles.items() if name not in machine} == {NUMERICS}
    assert {"train_tokenizer", "permute_tokens", "fresh_languages"} <= roles.keys()
