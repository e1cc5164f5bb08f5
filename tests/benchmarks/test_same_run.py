"""`same_run.py`: what it compares, under which names, and its exit statuses."""

import copy
import sys

import numpy as np
import pytest

import same_run


@pytest.fixture
def answer(make_card):
    card = make_card(charges=({"name": "step", "noise_multiplier": 2.5, "sample_rate": 0.5, "count": 20},))
    return {
        "ledger": [
            {"run": "ab", "config_sha256": "cd"},
            {"name": "step", "noise_multiplier": 2.5, "sample_rate": 0.5, "first": 0, "count": 12},
            {"name": "step", "noise_multiplier": 2.5, "sample_rate": 0.5, "first": 12, "count": 8},
        ],
        "card": card.model_dump(mode="json"),
        "tensors": {"correction.basis": same_run.array(np.arange(6, dtype=np.float32).reshape(2, 3))},
        "images": same_run.array(np.zeros((2, 8, 9), dtype=np.uint8)),
        "labels": same_run.array(np.zeros(2, dtype=np.int64)),
        "figures": [],
        "seconds": 1.0,
    }


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script with given answers of both sides; return exit status, stdout and stderr."""

    def call(old, new, *words):
        monkeypatch.setattr(same_run, "answers_of_rev", lambda sha: {"record": old})
        monkeypatch.setattr(same_run, "answers", lambda *_: iter([("record", new)]))
        monkeypatch.setattr(same_run, "git", lambda *_: b"ab\n")
        monkeypatch.setattr(sys, "argv", ["same_run.py", "--only", "record", *words])
        return same_run.main(), *capsys.readouterr()

    return call


def test_the_same_answers_are_ok(answer, run):
    assert run(answer, answer) == (0, "ok record 1.0\n", "")


def test_one_byte_of_a_tensor_differs(answer, run):
    other = copy.deepcopy(answer)
    other["tensors"]["correction.basis"] = same_run.array(np.array([[0, 1, 2], [3, 4, 7]], dtype=np.float32))
    line = "DIFFERS record: tensors.class_moments.basis: 1 of 24 bytes\n"
    assert run(answer, other) == (1, line, "")


def test_one_charge_more_differs(answer, run):
    other = copy.deepcopy(answer)
    other["ledger"][2]["count"] = 9
    assert run(answer, other) == (1, "DIFFERS record: charges[0].count: 20 became 21\n", "")


def test_a_run_that_fails_differs(answer, run):
    status, out, err = run(answer, {"error": "ValueError: no", "traceback": "Traceback: here", "seconds": 1.0})
    assert (status, out) == (1, "DIFFERS record: ValueError: no\n")
    assert "Traceback: here" in err


def test_a_run_without_an_answer_fails(answer, run):
    assert run(answer, answer, "--only", "record,batch")[0] == 1


def test_canonical_card_of_version_1(answer):
    facts = same_run.canonical_card(answer["card"])
    charge = {"name": "transport_steps", "noise_multiplier": 2.5, "sample_rate": 0.5, "count": 20}
    assert facts["charges"] == [charge]
    assert (facts["mode"], facts["num_steps"], facts["counted"]) == ("record", 20, False)
    assert facts["class_shares"] == [0.5, 0.3, 0.2]
    assert (facts["corrected_dimensions"], facts["matching_steps"], facts["classifier"]) == (None, None, False)


def test_canonical_tensors_of_a_mixture():
    names = ("first.last.weight", "second.last.weight", "correction.basis", "refinement.fields", "classifier.weight")
    assert list(same_run.canonical_tensors(dict.fromkeys(names))) == [
        "last.weight",
        "embedding_steps.last.weight",
        "class_moments.basis",
        "class_features.fields",
        "label_classifier.weight",
    ]


def test_an_unknown_rev(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["same_run.py", "no-such-rev"])
    assert same_run.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
