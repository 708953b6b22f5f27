"""`hf-plasticity plan`: every figure against arithmetic spelled out here, or against the model itself."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2LMHeadModel

from hf_plasticity import PlasticityError
from hf_plasticity.cli import main
from hf_plasticity.experiment import parse_experiment, run_experiment
from hf_plasticity.models import MODEL_SIZES, gpt2_config
from hf_plasticity.planning.arithmetic import forward_flops, plan_run
from support.documented import documented_commands


# fmt: off
PAPER = [
    "--size=314M", "--vocab_size=151680", "--context_length=2048", "--source=hub", "--dataset=culturax",
    "--tokenizer=Qwen/Qwen3-0.6B", "--global_batch_tokens=524288", "--task_steps=9537", "--cycles=48",
    "--probe_steps=9537", "--probe_eval_every=95", "--probe_eval_sequences=1280",
]
SMALL = [
    "--size=100K", "--cycles=2", "--task_steps=3", "--warmup_steps=1", "--context_length=32", "--probe_steps=4",
    "--global_batch_tokens=128", "--languages", "syn1", "syn2", "--probe_eval_sequences=4",
]
SMALLEST = [
    "--global_batch_tokens=512", "--cycles=1", "--task_steps=1", "--context_length=64", "--languages", "syn1",
]
# fmt: on


def planned(capsys, *arguments):
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def smallest(size, *settings, vocab_size=61):
    """The plan of one step on eight sequences of 64 tokens."""
    return plan_run(parse_experiment([*SMALLEST, f"--size={size}", "--use_cpu", *settings]), vocab_size)


def test_the_largest_run_of_the_paper_by_hand(capsys):
    answer = planned(
        capsys, *PAPER, "--bf16", "--per_device_train_batch_size=4", "--num_processes=64", "--tokens_per_second=5e6"
    )
    plan = answer["plan"]

    blocks = 12 * 16 * 1_280**2  # 314,572,800 weights
    assert plan["non_embedding_parameters"] == blocks + 13 * 16 * 1_280 + 2 * 1_280 == 314_841_600
    tokens_embedded, positions = 151_680 * 1_280, 2_048 * 1_280  # 194,150,400 and 2,621,440
    parameters = 314_841_600 + tokens_embedded + positions
    assert plan["parameters"] == parameters == 511_613_440

    assert plan["tasks"] == 48 * 8 == 384
    assert plan["steps"] == 384 * 9_537 == 3_662_208
    tokens = 3_662_208 * 524_288
    assert plan["tokens"] == tokens == 1_920_051_707_904
    assert [plan[name] for name in ("micro_batch_size", "gradient_accumulation_steps")] == [4, 1]  # 256 = 64 · 4

    # Forward and backward of a token: weight matrices, attention scores over 2,048 keys, and the head.
    matrices, scores, head = 6 * blocks, 12 * 16 * 1_280 * 2_048, 6 * 1_280 * 151_680
    assert (matrices, scores, head) == (1_887_436_800, 503_316_480, 1_164_902_400)
    per_token = 3_555_655_680
    compute = plan["compute"]
    assert compute["per_token"] == matrices + scores + head == per_token
    assert compute["head_share"] == pytest.approx(0.32762, abs=1e-5)
    assert compute["attention_share"] == pytest.approx(0.14155, abs=1e-5)
    assert compute["training"] == per_token * tokens == pytest.approx(6.82704e21, rel=1e-5)

    # 49 probes: before the first cycle and after each of 48. An evaluation is a forward pass, a third of the work,
    # and there are 102: after 0, 95, …, 9,500 steps (101 of them) and after all.
    assert plan["probes"] == 49
    probe = 9_537 * 524_288 * per_token + 102 * 1_280 * 2_048 * (per_token // 3)
    assert compute["probes"] == 49 * probe == pytest.approx(8.86688e20, rel=1e-5)
    assert compute["probe_share"] == pytest.approx(8.86688 / (8.86688 + 68.2704), rel=1e-4)

    seconds = plan["seconds"]
    assert seconds["training"] == pytest.approx(384_010.34, abs=0.01)  # 4.44 days
    assert seconds["probes"] == pytest.approx(384_010.34 * 8.86688 / 68.2704, rel=1e-5)  # 13.9 hours

    memory = plan["memory"]
    assert memory["parameters"] == memory["gradients"] == memory["buckets"] == 4 * parameters == 2_046_453_760
    assert memory["adam"] == 8 * parameters == 4_092_907_520
    assert memory["weight_copies"] == 2 * (blocks + tokens_embedded) == 1_017_446_400
    assert memory["activations"] == 4 * 2_048 * 16 * 36 * 1_280 == 6_039_797_760
    # Fused, as `auto` is for a vocabulary of this size: the logits of 8,192 tokens are ten times 2^27, so a chunk has
    # 832 tokens of 8 bytes a logit; the gradient of the head in float32, and its copy in bfloat16.
    assert answer["head_loss"] == "fused"
    assert memory["logits"] == 8 * 832 * 151_680 + 6 * tokens_embedded == 2_174_484_480
    assert memory["gathered"] == 0
    # 2 · 2.046 + 4.093 + 2.046 + 1.017 + 6.040 + 2.174 GB, and in a probe the snapshot and another Adam state
    assert memory["training"] == 19_463_997_440
    assert memory["probe"] == 19_463_997_440 + 2_046_453_760 + 4_092_907_520

    disk = plan["disk"]
    assert disk["checkpoints"] == 3 * 12 * parameters  # two that are kept and one being written
    assert disk["probed_checkpoints"] == 49 * 4 * parameters
    assert disk["hub"] == 50 * 4 * parameters

    # 48 · 5B tokens of each language, at four bytes (the vocabulary is beyond 65,536). Shards of 2^20, 2^21, …, 2^27,
    # together 2^28 - 2^20 tokens, are followed by as many of 2^28 as it takes.
    text = {(one["language"], one["use"]): one for one in answer["text"]}
    english = text["en", "training"]
    assert english["tokens"] == 48 * 9_537 * 524_288 == 240_006_463_488
    full = math.ceil((240_006_463_488 - (2**28 - 2**20)) / 2**28)
    assert english["bytes_on_disk"] == 4 * (2**28 - 2**20 + full * 2**28)
    assert text["vi", "probe"]["tokens"] == 9_537 * 524_288 == 5_000_134_656
    assert text["vi", "evaluation"]["tokens"] == 1_280 * 2_048
    assert disk["blocks"] == sum(one["bytes_on_disk"] for one in answer["text"])
    assert english["available"] is None and english["how"].startswith("unknown")

    # T = 1.3e-5 · P^0.8269: ln P = 19.56749, times 0.8269 is 16.18036, e to that 1.0642e7.
    onset = plan["onset"]
    assert onset["task"] == pytest.approx(138.4, abs=0.1)
    assert onset["cycle"] == pytest.approx(17.3, abs=0.05)
    assert onset["tokens"] == pytest.approx(6.92e11, rel=1e-3)
    assert onset["reached_by_tasks"] and onset["reached_by_tokens"] and not onset["extrapolated"]


def test_the_loss_that_holds_all_logits_takes_more_memory(capsys):
    settings = [*PAPER, "--bf16", "--per_device_train_batch_size=4", "--num_processes=64"]
    answer = planned(capsys, *settings, "--head_loss=logits")
    assert answer["head_loss"] == "logits"
    assert answer["plan"]["memory"]["logits"] == 4 * 2_048 * 151_680 * 12 == 14_910_750_720
    assert planned(capsys, *SMALL)["head_loss"] == "logits"  # bytes


def test_fsdp2_divides_what_adam_holds_among_the_devices(capsys):
    memory = planned(capsys, *PAPER, "--per_device_train_batch_size=1", "--num_processes=8", "--sharding=fsdp2")[
        "plan"
    ]["memory"]
    share = 511_613_440 // 8
    assert (memory["parameters"], memory["gradients"], memory["adam"]) == (4 * share, 4 * share, 8 * share)
    assert (memory["probe_snapshot"], memory["probe_adam"], memory["buckets"]) == (4 * share, 8 * share, 0)
    block, outside = 12 * 1_280**2 + 13 * 1_280, (151_680 + 2_048 + 2) * 1_280
    assert memory["gathered"] == 4 * (2 * outside + 3 * block)


def test_streaming_keeps_two_task_instances_of_a_language_and_the_shards_they_begin_and_end_in(capsys):
    english, *_ = planned(capsys, *PAPER, "--streaming=true")["text"]
    assert english["tokens"] == 240_006_463_488
    assert english["bytes_on_disk"] == 4 * (2 * 9_537 * 524_288 + 2 * 2**28)


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        ([], 3),  # two that are kept and the one being written
        (["--save_total_limit=1"], 2),
        (["--save_total_limit=0"], 4 + 2 - 2),  # all: after each of 4 task instances, at which both cycles end
        (["--save_total_limit=0", "--save_steps=4"], 3 + 2 - 1),  # after 4, 8, 12 steps and after 6 and 12
        (["--save_total_limit=9", "--save_steps=12"], 2),  # fewer than may be kept
        (["--save_total_limit=9", "--save_steps=12", "--probe_every_tasks=1"], 4),  # and at every probe
        (["--save_strategy=no"], 0),
    ],
)
def test_checkpoints_for_resuming_are_counted_at_their_most(capsys, flags, count):
    plan = planned(capsys, *SMALL, *flags)["plan"]
    assert plan["disk"]["checkpoints"] == count * 12 * plan["parameters"]


def test_measuring_what_does_not_fit_is_refused(capsys):
    assert main(["plan", *PAPER, "--measure"]) == 2
    # 16 bytes a parameter, 16 blocks of 64 · 1,280 a token, and 12 · 151,680 for its loss, of 256 sequences at once
    assert "per_device_train_batch_size: a micro-batch of 256 requires 697.2 GB" in capsys.readouterr().err


def test_the_head_is_most_of_a_small_model_over_a_large_vocabulary():
    plan = smallest("5M", "--context_length=512", vocab_size=151_680)
    # 6 · 320 · 151,680 of it and 72 · 4 · 320² and 12 · 4 · 320 · 512
    assert plan["compute"]["head_share"] == pytest.approx(291_225_600 / (291_225_600 + 29_491_200 + 7_864_320))


@pytest.mark.parametrize("size", ["25K", "220K"])
def test_flops_are_those_that_torch_counts(size):
    model = GPT2LMHeadModel(gpt2_config(size, 61, 64))
    model.set_attn_implementation("eager")
    input_ids = torch.randint(61, (8, 64))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    assert smallest(size)["compute"]["training"] == counter.get_total_flops()


def test_flops_of_a_lora_probe_are_those_that_torch_counts():
    model = GPT2LMHeadModel(gpt2_config("100K", 61, 64))
    model.set_attn_implementation("eager")
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", fan_in_fan_out=True)
    model = get_peft_model(model, config)
    input_ids = torch.randint(61, (8, 64))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=input_ids, labels=input_ids).loss.backward()
    settings = ["--probe_adaptation=lora", "--probe_lora_rank=4", "--probe_steps=1", "--probe_eval_sequences=8"]
    plan = smallest("100K", *settings)
    # Nothing trainable comes before the first block: the input of its first projection needs no gradient.
    first_input = 512 * (2 * 64 * 3 * 64 + 2 * 64 * 4)
    evaluations = 2 * 512 * sum(forward_flops(MODEL_SIZES["100K"], 61, 64))  # before and after the step
    probe = plan["compute"]["probes"] // plan["probes"]
    assert probe - evaluations - first_input == counter.get_total_flops()
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plan["memory"]["probe_adam"] == 8 * trainable and plan["memory"]["probe_snapshot"] == 0


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_what_a_forward_keeps(bf16):
    def kept(layers):
        config = gpt2_config("100K", 61, 64, n_layer=layers)
        model = GPT2LMHeadModel(config)
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            # the copies of weight matrices under autocast are another line of the plan
            if (
                tensor.is_floating_point()
                and storage.data_ptr() not in weights
                and tensor.shape[:1] in ((8,), (8 * 64,))
            ):
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)
            return tensor

        input_ids = torch.randint(61, (8, 64))
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            loss = model(input_ids=input_ids, labels=input_ids).loss
        assert loss.requires_grad
        return sum(size for size, _ in storages.values())

    measured = (kept(6) - kept(2)) / 4
    estimate = smallest("100K", f"--bf16={bf16}")["memory"]["activations"] / 2
    assert measured == pytest.approx(estimate, rel=0.03)


def test_gradient_checkpointing_trades_flops_for_activations():
    full, checkpointed = smallest("5M"), smallest("5M", "--gradient_checkpointing=true")
    # the forward of four blocks again, and of what they kept their inputs alone, and one block in the making
    again = 24 * 4 * 320**2 + 4 * 4 * 320 * 64
    assert checkpointed["compute"]["per_token"] - full["compute"]["per_token"] == again
    activations = 512 * (4 * 4 * 320 + 64 * 320)
    assert checkpointed["memory"]["activations"] == activations < full["memory"]["activations"]


def test_a_run_takes_what_was_planned(tmp_path, capsys):
    arguments = [*SMALL, f"--output_dir={tmp_path / 'run'}", f"--data_cache_dir={tmp_path / 'blocks'}"]
    plan = planned(capsys, *arguments)["plan"]
    assert not list(tmp_path.iterdir())
    study = parse_experiment([*arguments, "--disable_tqdm=true", "--use_cpu"])
    run_experiment(study)
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] == plan["steps"] == 12
    weights = [path.stat().st_size for path in (tmp_path / "run").glob("cycle-*/model.safetensors")]
    assert len(weights) == plan["probes"] == 3
    assert sum(weights) == pytest.approx(plan["disk"]["probed_checkpoints"], rel=0.02)  # names and shapes besides
    newest = tmp_path / "run" / "checkpoint-12"
    state = sum((newest / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert 3 * state == pytest.approx(plan["disk"]["checkpoints"], rel=0.06)
    assert sum(path.stat().st_size for path in tmp_path.rglob("shard-*.bin")) == plan["disk"]["blocks"]


def test_measuring_gives_a_throughput_for_all_processes(capsys):
    plan = planned(capsys, *SMALL, "--measure", "--num_processes=2")
    seconds = plan["plan"]["seconds"]
    assert 100 < seconds["tokens_per_second"] < 1e8
    assert seconds["training"] == pytest.approx(plan["plan"]["tokens"] / seconds["tokens_per_second"])
    assert plan["measured"].startswith("CPU") or torch.cuda.is_available()


def test_local_text_is_estimated_until_it_is_prepared_and_then_counted(tmp_path, capsys):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, language in enumerate(("aa", "bb")):
        lines = [f"{language} line {i} " + "word " * (i % 17 + 20 * number) for i in range(4_000)]
        (folder / f"{language}.txt").write_text("\n".join(lines))
    arguments = [
        *SMALL, "--source=local", f"--data_dir={folder}", "--languages", "aa", "--probe_language", "bb",
        f"--data_cache_dir={tmp_path / 'blocks'}", "--task_steps=4000",
    ]  # fmt: skip
    before = planned(capsys, *arguments)["text"]
    assert [one["how"] for one in before] == ["estimated"] * 3
    assert main(["prepare", *arguments, "--allow_repeats=true", "--disable_tqdm=true"]) == 0
    capsys.readouterr()
    after = planned(capsys, *arguments)["text"]
    assert [one["how"] for one in after] == ["counted"] * 3
    for estimated, counted in zip(before, after):
        assert estimated["available"] == pytest.approx(counted["available"], rel=0.02)
    assert main(["plan", *arguments]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  aa training"))
    assert f"{4_000 * 2 * 128:,}" in line and f"{after[0]['available']:,} (counted), too few" in line


def test_the_table_shows_every_section_and_aligns_its_figures(capsys):
    assert main(["plan", *SMALL, "--tokens_per_second=1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    titles = [line for line in lines if line and not line.startswith(" ")]
    assert titles == [
        "model and run", "text", "compute", "time", "memory on each device", "disk", "onset by the paper's law",
    ]  # fmt: skip
    ends = [
        line.index(figure) + len(figure)
        for line in lines
        for figure in ("100,096 ", "1,536 ", "1,000 ")
        if figure in line
    ]
    assert len(ends) >= 3 and len(set(ends)) == 1
    assert "this run has 4: long enough" in "\n".join(lines)  # 0.18 task instances for 100K, by extrapolation
    assert "too short" in "\n".join(lines)


def test_the_time_of_deferred_probes_is_not_the_runs(capsys):
    assert main(["plan", *SMALL, "--tokens_per_second=1", "--probe=deferred"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    run_takes = lines["probes"].split("deferred, so that the run takes ")[1]
    assert run_takes == " ".join(lines["training"].split()[1:3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cycle=3"], "argument '--cycle=3' is unknown; did you mean 'cycles'?"),
        (["--sharding=fsdp3"], "sharding: 'fsdp3' is unknown; choose one of none, fsdp2"),
        (["--num_processes=3"], "global_batch_tokens: its 16 sequences do not divide among 3 processes"),
        (["--num_processes=0"], "num_processes: 0 is not a positive number"),
        (["--tokens_per_second=-1"], "tokens_per_second: -1.0 is not a positive number"),
        (["--tokens_per_second=5", "--measure"], "tokens_per_second: 5.0 is given and --measure too; leave one out"),
        (["--vocab_size=9"], "vocab_size: 9 is less than the tokenizer's 257 tokens"),
        (["--context_length=0"], "context_length: 0 leaves no token to predict"),
        (["--tokenizer=no/such"], "tokenizer: there is no 'no/such' on the Hub"),
    ],
)
def test_mistakes_are_errors_on_one_line(arguments, message, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.strip().startswith(f"hf-plasticity: error: {message}") and "\n" not in error.strip()


def test_a_micro_batch_that_does_not_divide_is_refused_with_the_share_of_a_process():
    with pytest.raises(PlasticityError, match="per_device_train_batch_size: 3 does not divide the 8 sequences"):
        smallest("25K", "--per_device_train_batch_size=3")


def test_a_probe_with_its_own_batch_takes_its_own_text_and_time(capsys):
    one, four = (planned(capsys, *SMALL, f"--probe_batch_size={batch}", "--probe_eval_every=4") for batch in (4, 16))
    steps = [
        next(row["sequences"] for row in plan["text"] if row["use"] == "probe" and row["split"] == "train")
        for plan in (one, four)
    ]
    assert steps == [4 * 4, 4 * 16]
    # Two evaluations of four sequences by a forward pass, and a step is three of them.
    evaluations = 2 * 4
    ratio = (3 * 4 * 16 + evaluations) / (3 * 4 * 4 + evaluations)
    assert four["plan"]["compute"]["probes"] / one["plan"]["compute"]["probes"] == pytest.approx(ratio)


def test_probes_after_task_instances_count(capsys):
    plan = planned(capsys, *SMALL, "--probe_every_tasks=2", "--cycles=3")["plan"]
    assert plan["tasks"] == 6 and plan["probes"] == 1 + 3  # after 0, 2, 4 and 6


def test_the_documented_commands_run_as_they_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [*documented_commands("hf-plasticity plan"), *documented_commands("hf-plasticity prepare")]
    assert len(commands) == 4
    outputs = []
    for _, *words in commands:
        assert main(words) == 0
        outputs.append(capsys.readouterr().out)
    # what the page says of the paper's largest run
    for figure in ("1,920,051,707,904", "6.827e+21", "32.8% in the head", "8.867e+20", " 25.6 GB"):
        assert figure in outputs[2]
    assert outputs[3].splitlines()[0].split() == ["language", "split", "use", "blocks", "tokens", "folder"]
    assert not (tmp_path / "runs").exists()


def test_deferred_probes_need_no_memory_on_the_devices_of_the_training(capsys):
    memory = planned(capsys, *SMALL, "--probe=deferred")["plan"]["memory"]
    assert (memory["probe_snapshot"], memory["probe_adam"], memory["probe"]) == (0, 0, 0)


def test_the_plan_names_the_settings_whose_cost_it_does_not_count(capsys):
    assert planned(capsys, *SMALL)["not_counted"] == {}
    settings = [
        "--optim=sgd",
        "--probe_learning_rate=1e-3",
        "--mitigation",
        "l2_init",
        "--diagnose",
        "--torch_compile",
    ]
    assert list(planned(capsys, *SMALL, *settings)["not_counted"]) == [
        "optim",
        "mitigation",
        "diagnose",
        "torch_compile",
    ]
    assert main(["plan", *SMALL, "--mitigation", "l2_init"]) == 0
    assert "mitigation" in capsys.readouterr().out.split("not counted\n")[1]
