"""What users get wrong ends in one clear line and exit status 2, before any work is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.codec import HFCodec
from cli.main import main
from sleuth.errors import PolicyError

ROOT = Path(__file__).parents[3]
SMOKE = str(ROOT / "configs" / "smoke.yaml")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that ``sleuth ARGUMENTS`` ends with; it must be an error a user can mend."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    assert stopped.value.code == 2, captured.err
    assert "Traceback" not in captured.err and not captured.out
    return " ".join(captured.err.split())


def real(tmp_path: Path, questions: str) -> list[str]:
    """Arguments of a run on a question file with this content."""
    path = tmp_path / "questions.jsonl"
    path.write_text(questions, encoding="utf-8")
    config = tmp_path / "run.yaml"
    config.write_text(
        f"out: {tmp_path / 'run'}\npolicy: {{model: smollm2}}\nretriever: {tmp_path / 'index'}\n"
        f"data: {{train: [{{path: {path}}}], dev: {path}}}\ngrpo: {{}}\n",
        encoding="utf-8",
    )
    return ["train", str(config)]


def test_a_missing_config_names_the_nearest(capsys, tmp_path):
    assert "smoke.yaml" in fails(capsys, "train", str(ROOT / "configs" / "smoke.yml"), "--out", str(tmp_path / "r"))


def test_a_wrong_key_names_the_right_one(capsys, tmp_path):
    line = fails(capsys, "train", SMOKE, "--out", str(tmp_path / "r"), "--set", "grpo.stepz=4")
    assert "grpo.stepz" in line and "'steps'" in line


def test_a_negative_number(capsys, tmp_path):
    line = fails(capsys, "train", SMOKE, "--out", str(tmp_path / "r"), "--set", "grpo.steps=-1")
    assert "grpo.steps" in line and "-1" in line


def test_an_unknown_kind_of_reward(capsys, tmp_path):
    line = fails(capsys, "train", SMOKE, "--out", str(tmp_path / "r"), "--set", "rewards=[{kind: exact_mach}]")
    assert "exact_match" in line


def test_a_backend_that_cannot_train_is_refused_not_ignored(capsys, tmp_path):
    line = fails(capsys, "train", SMOKE, "--out", str(tmp_path / "r"), "--set", "policy.backend=my.module:make")
    assert "policy.backend" in line and not (tmp_path / "r").exists()


def test_an_empty_question_file(capsys, tmp_path):
    assert "questions.jsonl" in fails(capsys, *real(tmp_path, ""))


def test_a_missing_question_file(capsys, tmp_path):
    arguments = real(tmp_path, "")
    line = fails(capsys, *arguments, "--set", "data.dev=nowhere.jsonl", "--set", "data.train=[{path: nowhere.jsonl}]")
    assert "nowhere.jsonl" in line


def test_a_missing_index(capsys, tmp_path):
    line = fails(capsys, "search", str(tmp_path / "index"), "who", "is", "it")
    assert "sleuth index" in line


def test_a_policy_that_is_not_there(capsys, tmp_path):
    row = json.dumps({"id": "1", "question": "who?", "golden_answers": ["me"]})
    arguments = real(tmp_path, row + "\n")
    assert "nowhere" in fails(capsys, *arguments, "--set", f"policy.model={tmp_path}/nowhere/policy")


def test_a_corpus_row_without_text(capsys, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "a", "title": "A", "text": "words"}\n{"_id": "b", "title": "B"}\n', encoding="utf-8")
    line = fails(capsys, "index", str(corpus), "--out", str(tmp_path / "index"))
    assert ":2" in line or "line 2" in line
    assert not (tmp_path / "index").exists()


def test_no_hits_at_all_are_asked_for(capsys, tmp_path):
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"_id": "a", "title": "A", "text": "words"}\n', encoding="utf-8")
    try:
        main(["index", str(corpus), "--out", str(tmp_path / "index")])
    except SystemExit as stopped:
        assert stopped.code in (0, None)
    capsys.readouterr()
    line = fails(capsys, "search", str(tmp_path / "index"), "words", "-k", "0")
    assert "k is 0" in line


class _Tokenizer:
    name_or_path = "bare"
    bos_token_id = None
    eos_token = "<eos>"
    eos_token_id: int | None = 1
    pad_token_id: int | None = None
    unk_token_id = None
    all_special_tokens = ("<eos>",)
    all_special_ids = (1,)
    chat_template = None

    @property
    def pad_token(self) -> None:
        return None

    @pad_token.setter
    def pad_token(self, token: str) -> None:
        assert token == self.eos_token
        self.pad_token_id = self.eos_token_id

    def get_added_vocab(self) -> dict[str, int]:
        return {"<eos>": 1}


def test_a_tokenizer_without_pad_token_pads_with_eos():
    assert HFCodec(_Tokenizer()).pad_token_id == 1


def test_a_tokenizer_without_eos_is_refused():
    bare = _Tokenizer()
    bare.eos_token_id = None
    with pytest.raises(PolicyError, match="EOS"):
        HFCodec(bare)
