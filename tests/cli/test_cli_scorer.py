"""`--scorer` and `--memory`: another way to the same answers, and refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commandline import Vctool, expect_line

from vctool.runtime.sessions import import_onnxruntime


def test_the_graph_gives_the_answers_of_the_kernel_in_any_memory(vctool: Vctool, tiny_index: Path) -> None:
    asked = ("query", "green then yellow", "--index", tiny_index, "--json")
    usual = json.loads(vctool(*asked, "--scorer", "kernel").out)["hits"]
    for memory in ((), ("--memory", "100kB"), ("--memory", "1.5GiB")):
        found = json.loads(vctool(*asked, "--scorer", "graph", *memory).out)["hits"]
        assert [h["id"] for h in found] == [h["id"] for h in usual]
        assert [h["score"] for h in found] == pytest.approx([h["score"] for h in usual], abs=0.02)  # the kernel rounds queries 8 wide


def test_a_device_that_is_not_there_is_refused_and_not_replaced(vctool: Vctool, tiny_index: Path) -> None:
    if "CUDAExecutionProvider" in import_onnxruntime().get_available_providers():
        pytest.skip("this ONNX Runtime offers CUDA")
    done = vctool("query", "red", "--index", tiny_index, "--device", "cuda")
    expect_line(done, 1, "asked for cuda, but this ONNX Runtime offers only")
    assert done.out == ""


def test_a_memory_that_is_none_or_too_little_is_refused(vctool: Vctool, tiny_index: Path) -> None:
    asked = ("query", "red", "--index", tiny_index, "--scorer", "graph", "--memory")
    for wrong in ("much", "0", "5TB"):
        done = vctool(*asked, wrong)
        assert done.code == 2 and f"'{wrong}' is not a size; write 500MB or 4GB" in done.err
    expect_line(vctool(*asked, "1kB"), 2, "1 kB is too little memory to score tokens 8 wide")


def test_doctor_says_which_scorer_runs_and_why(vctool: Vctool) -> None:
    findings = {f["part"]: f for f in json.loads(vctool("doctor", "--json").out)["findings"]}
    assert "kernel on the CPU" in findings["scorer"]["found"] and findings["scorer"]["state"] == "ok"
