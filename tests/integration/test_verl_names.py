"""Every verl name that we rely on exists in the installed verl, one test a name."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("VERL_PLATFORM", "cpu")
pytest.importorskip("verl", reason="needs verl")

import verl  # noqa: F401

from verl_toolrl.integrations.verl_names import CPU_NAMES, NAMES, VLLM_NAMES, VerlName, problem


@pytest.mark.parametrize("name", [*NAMES, *CPU_NAMES, *VLLM_NAMES], ids=lambda name: name.path)
def test_name_exists_and_takes_the_parameters_that_we_pass(name: VerlName) -> None:
    assert problem(name) is None


def test_a_name_that_is_gone_is_reported_with_its_use() -> None:
    assert "for nothing" in str(problem(VerlName("verl.trainer:gone", "nothing")))


def test_a_parameter_that_is_gone_is_reported() -> None:
    name = VerlName("verl.trainer.ppo.v1:register_trainer", "trainers", ("label",))
    assert "no parameter label" in str(problem(name))


def test_a_text_that_is_gone_from_the_source_is_reported() -> None:
    name = VerlName("verl.trainer.ppo.v1:register_trainer", "trainers", mentions=("self.no_such_attribute",))
    assert "its source does not say self.no_such_attribute" in str(problem(name))
