import hashlib
import json
import shutil
from collections import Counter
from itertools import islice, pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_plasticity.data.sources import local, synthetic
from hf_plasticity.data.sources.local import LocalSource
from hf_plasticity.data.sources.synthetic import (
    SCRIPTS,
    SYNTHETIC_LANGUAGES,
    SYNTHETIC_PROBE_LANGUAGE,
    SyntheticSource,
)
from hf_plasticity.errors import PlasticityError


def documents_of(source, language, state=None):
    return [document for documents, _ in source.batches(language, state) for document in documents]


def write_parquet(path, texts, column="text", row_group_size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: texts}), path, row_group_size=row_group_size)


def write_jsonl(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))


def write_txt(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")


class TestSynthetic:
    def test_text_is_pinned(self):
        digest = hashlib.sha256()
        for language in SCRIPTS:
            documents, _ = next(SyntheticSource(seed=0).batches(language))
            for document in documents[:100]:
                digest.update(document.encode() + b"\0")
        assert digest.hexdigest() == "110a3f83ae9a08efa4923c6ec83ef89cf0b44b2581ab781dbf8b764858ff5ebe"
        assert SyntheticSource(seed=0).fingerprint("syn1") == "7f0b6a0c3da7f731c21342052e95d3cb"

    def test_a_document_depends_only_on_its_number(self):
        first, second, third = islice(SyntheticSource().batches("syn3"), 3)
        assert [state for _, state in (first, second, third)] == [
            {"document": 0},
            {"document": 1024},
            {"document": 2048},
        ]
        assert next(SyntheticSource().batches("syn3", json.loads(json.dumps(third[1])))) == third
        assert next(SyntheticSource().batches("syn3", {"document": 7}))[0][:50] == first[0][7:57]

    def test_seeking_far_costs_nothing(self):
        documents, state = next(SyntheticSource().batches("syn1", {"document": 10**15}))
        assert state == {"document": 10**15} and len(documents) == 1024

    def test_documents_are_fresh_and_never_empty(self):
        documents = [d for batch, _ in islice(SyntheticSource().batches("syn4"), 4) for d in batch]
        assert len(set(documents)) == len(documents)
        assert min(map(len, documents)) > 100

    def test_batches_hold_about_a_million_characters(self):
        for language in SCRIPTS:
            documents, _ = next(SyntheticSource().batches(language))
            assert 0.7e6 < sum(map(len, documents)) < 1.3e6

    def test_languages_differ_and_share(self):
        lexicons = {}
        for language in SCRIPTS:
            documents, _ = next(SyntheticSource().batches(language))
            marks = str.maketrans(dict.fromkeys(".,;!?-", " "))
            lexicons[language] = set(" ".join(documents).translate(marks).lower().split())
        del lexicons["syn4"]  # written without spaces
        for one in lexicons:
            for other in lexicons.keys() - {one}:
                shared = len(lexicons[one] & lexicons[other]) / len(lexicons[one])
                assert 0.01 < shared < 0.3, (one, other, shared)

    def test_words_are_zipfian(self):
        documents, _ = next(SyntheticSource().batches("syn7"))
        words = " ".join(documents).lower().replace(".", "").replace(",", "").replace("?", "").split()
        counts = Counter(words)
        assert 2500 < len(counts) <= 3040
        # Equally frequent words would give the forty commonest 1.3% of the text; natural languages give them a third.
        assert sum(count for _, count in counts.most_common(40)) > 0.3 * len(words)

    def test_seeds_and_languages_have_their_own_fingerprint(self):
        languages = (*SYNTHETIC_LANGUAGES, SYNTHETIC_PROBE_LANGUAGE)
        assert languages == tuple(SCRIPTS)
        fingerprints = {SyntheticSource(seed).fingerprint(language) for seed in (0, 1) for language in languages}
        assert len(fingerprints) == 18
        assert SyntheticSource(1).fingerprint("syn9") == SyntheticSource(1).fingerprint("syn9")

    def test_fingerprint_follows_the_text(self, monkeypatch):
        before = SyntheticSource().fingerprint("syn1")
        monkeypatch.setattr(synthetic, "LOAN_WORDS", 0.5)
        assert SyntheticSource().fingerprint("syn1") != before

    def test_a_real_language_is_refused(self):
        with pytest.raises(
            PlasticityError, match=r"^languages: 'vi' is not a synthetic language; .* syn1, .*, syn9 and "
        ):
            next(SyntheticSource().batches("vi"))
        with pytest.raises(PlasticityError, match=r"^seed: -1 is negative"):
            SyntheticSource(-1)


TEXTS = [f"document {i} – {'ein Wort ' * (i % 7)}{i}" for i in range(500)]


class TestLocal:
    @pytest.mark.parametrize("write, suffix", [(write_parquet, "parquet"), (write_jsonl, "jsonl"), (write_txt, "txt")])
    def test_every_format_gives_every_document_once_and_shuffled(self, tmp_path, write, suffix):
        write(tmp_path / f"xx.{suffix}", TEXTS)
        documents = documents_of(LocalSource(tmp_path), "xx")
        assert sorted(documents) == sorted(TEXTS) and documents != TEXTS
        order = [TEXTS.index(document) for document in documents]
        # Shuffled well: of 499 neighbours, a uniform shuffle leaves about one that follows the other in the file.
        assert sum(b - a == 1 for a, b in pairwise(order)) < 10
        assert documents == documents_of(LocalSource(tmp_path), "xx")

    def test_files_in_a_folder_are_one_language(self, tmp_path):
        write_txt(tmp_path / "xx" / "a.txt", TEXTS[:100])
        write_parquet(tmp_path / "xx" / "deep" / "b.parquet", TEXTS[100:300], row_group_size=37)
        write_jsonl(tmp_path / "xx" / "c.jsonl", TEXTS[300:])
        (tmp_path / "xx" / "README.md").write_text("not a document")
        assert sorted(documents_of(LocalSource(tmp_path), "xx")) == sorted(TEXTS)
        assert LocalSource(tmp_path).languages() == ["xx"]

    @pytest.mark.parametrize("write, suffix", [(write_parquet, "parquet"), (write_jsonl, "jsonl"), (write_txt, "txt")])
    def test_every_state_continues_with_its_batch(self, tmp_path, monkeypatch, write, suffix):
        monkeypatch.setattr(local, "CHUNK_BYTES", 700)
        monkeypatch.setattr(local, "POOL_BYTES", 3000)
        monkeypatch.setattr(local, "BATCH_CHARACTERS", 1000)
        for part in range(5):
            write(tmp_path / "xx" / f"{part}.{suffix}", TEXTS[part * 100 : part * 100 + 100])
        batches = list(LocalSource(tmp_path).batches("xx"))
        assert len({state["pool"] for _, state in batches}) > 4 and len(batches) > 10
        assert sorted(d for documents, _ in batches for d in documents) == sorted(TEXTS)
        for i, (_, state) in enumerate(batches):
            assert list(LocalSource(tmp_path).batches("xx", json.loads(json.dumps(state)))) == batches[i:]

    def test_continuing_opens_no_file_of_an_earlier_pool(self, tmp_path, monkeypatch):
        monkeypatch.setattr(local, "POOL_BYTES", 1)
        for part in range(4):
            write_txt(tmp_path / "xx" / f"{part}.txt", TEXTS[part * 100 : part * 100 + 100])
        source = LocalSource(tmp_path)
        _, state = list(source.batches("xx"))[-1]
        read = []
        monkeypatch.setattr(
            local, "_read_lines", lambda chunk, inner=local._read_lines: read.append(chunk) or inner(chunk)
        )
        documents_of(source, "xx", state)
        assert len(read) == 1

    def test_order_is_pinned(self, tmp_path):
        write_txt(tmp_path / "xx.txt", [str(i) for i in range(12)])
        assert " ".join(documents_of(LocalSource(tmp_path), "xx")) == "9 2 4 7 5 0 11 8 10 6 3 1"
        assert LocalSource(tmp_path).fingerprint("xx") == "762eda45b1924653c6b54087c1122363"

    def test_blank_documents_are_none(self, tmp_path):
        write_parquet(tmp_path / "pp.parquet", ["a", None, "", " \n", "b"])
        (tmp_path / "tt.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\n  \nb\x0bc\xe2\x80\xa8d")
        (tmp_path / "jj.jsonl").write_text('{"text": "a"}\n\n{"text": null}\n{"text": "b\\ud83c\\udf89"}\n')
        source = LocalSource(tmp_path)
        assert sorted(documents_of(source, "pp")) == ["a", "b"]
        assert sorted(documents_of(source, "tt")) == ["a", "b\x0bc\u2028d"]
        assert sorted(documents_of(source, "jj")) == ["a", "b🎉"]

    def test_fingerprint_is_of_names_and_contents(self, tmp_path):
        write_txt(tmp_path / "one" / "xx" / "a.txt", TEXTS)
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        fingerprint = LocalSource(tmp_path / "one").fingerprint("xx")
        assert LocalSource(tmp_path / "two").fingerprint("xx") == fingerprint
        assert LocalSource(tmp_path / "one", text_column="other").fingerprint("xx") != fingerprint
        write_txt(tmp_path / "one" / "yy" / "a.txt", TEXTS)
        assert LocalSource(tmp_path / "one").fingerprint("xx") == fingerprint
        (tmp_path / "two" / "xx" / "a.txt").rename(tmp_path / "two" / "xx" / "b.txt")
        assert LocalSource(tmp_path / "two").fingerprint("xx") != fingerprint
        write_txt(tmp_path / "one" / "xx" / "a.txt", [*TEXTS[:-1], "changed"])
        assert LocalSource(tmp_path / "one").fingerprint("xx") != fingerprint

    def test_dictionary_columns_are_strings(self, tmp_path):
        pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "xx.parquet")
        assert sorted(documents_of(LocalSource(tmp_path), "xx")) == ["a", "a", "b"]

    def test_reads_the_corpus(self, corpus_dir):
        source = LocalSource(corpus_dir)
        assert {"en", "vi", "zh"} <= set(source.languages())
        texts = pq.read_table(corpus_dir / "vi.parquet", columns=["text"])["text"].to_pylist()
        assert sorted(documents_of(source, "vi")) == sorted(texts)


def _not_utf8_parquet(path):
    column = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb")]
    )
    pq.write_table(pa.table({"text": column}), path)


BAD_FILES = {
    "missing language": (lambda p: write_txt(p / "yy.txt", "ab"), r"has no 'xx' \(.*\); it has yy$"),
    "empty folder": (lambda p: None, r"has no 'xx' \(.*\); it has no language at all$"),
    "file and folder": (
        lambda p: (write_txt(p / "xx.txt", "ab"), write_txt(p / "xx" / "a.txt", "ab")),
        r"has xx.txt and xx/; keep one of them for 'xx'$",
    ),
    "two files": (
        lambda p: (write_txt(p / "xx.txt", "ab"), write_jsonl(p / "xx.jsonl", "ab")),
        r"has xx.jsonl and xx.txt; keep one of them for 'xx'$",
    ),
    "empty file": (lambda p: (p / "xx.txt").write_bytes(b""), r"xx.txt' is empty$"),
    "no rows": (lambda p: write_parquet(p / "xx.parquet", pa.array([], pa.string())), r"xx.parquet' has no rows$"),
    "only blanks": (lambda p: (p / "xx.txt").write_bytes(b"\n \n"), r"files of 'xx' .* hold no documents$"),
    "no column": (
        lambda p: write_parquet(p / "xx.parquet", ["a"], "content"),
        r"xx.parquet' has no column 'text'; its columns are content$",
    ),
    "no strings": (lambda p: write_parquet(p / "xx.parquet", [1]), r"column 'text' of .* holds int64, not strings$"),
    "corrupt parquet": (lambda p: (p / "xx.parquet").write_bytes(b"PAR1 no"), r"is not a readable Parquet file: "),
    "parquet not utf-8": (lambda p: _not_utf8_parquet(p / "xx.parquet"), r"xx.parquet' row 2 is not UTF-8: "),
    "txt not utf-8": (lambda p: (p / "xx.txt").write_bytes(b"a\nb\nc\xff\n"), r"xx.txt:3 is not UTF-8: "),
    "jsonl not utf-8": (lambda p: (p / "xx.jsonl").write_bytes(b'{"text": "a"}\n\xff'), r"xx.jsonl:2 is not UTF-8: "),
    "invalid json": (
        lambda p: (p / "xx.jsonl").write_text('{"text": "a"}\n{"text'),
        r"xx.jsonl:2 is not valid JSON: ",
    ),
    "no object": (lambda p: (p / "xx.jsonl").write_text("3"), r"xx.jsonl:1 has no field 'text'; it is not an object$"),
    "no field": (
        lambda p: (p / "xx.jsonl").write_text('{"id": 1, "body": "a"}'),
        r"xx.jsonl:1 has no field 'text'; its fields are id, body$",
    ),
    "field no string": (
        lambda p: (p / "xx.jsonl").write_text('{"text": [1]}'),
        r"xx.jsonl:1: field 'text' holds list",
    ),
    "half a pair": (lambda p: (p / "xx.jsonl").write_text('{"text": "\\ud83c"}'), r"xx.jsonl:1 escapes half a surr"),
}


@pytest.mark.parametrize("write, message", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_local_files_are_one_line_errors(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(PlasticityError, match=message) as caught:
        documents_of(LocalSource(tmp_path), "xx")
    assert str(caught.value).startswith("data_dir: ") and "\n" not in str(caught.value)


def test_truncated_parquet_names_the_row(tmp_path):
    write_parquet(tmp_path / "xx.parquet", TEXTS, row_group_size=250)
    data = bytearray((tmp_path / "xx.parquet").read_bytes())
    data[20:400] = b"\xff" * 380
    (tmp_path / "xx.parquet").write_bytes(data)
    with pytest.raises(PlasticityError, match=r"cannot be read from row 1 on: "):
        documents_of(LocalSource(tmp_path), "xx")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(PlasticityError, match=r"^data_dir: folder '.*nowhere' does not exist$"):
        LocalSource(tmp_path / "nowhere")
