import json

import numpy as np
import pytest

from polyroute.data.formats.twinrouterbench import load_steps
from polyroute.errors import OutcomesError

SYSTEM = {"role": "system", "content": "You repair code."}  # 16 bytes, 4 tokens
ASK = {"role": "user", "content": [{"type": "text", "text": "Fix the bug now."}]}  # 16 bytes
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "open", "arguments": '{"f": "a"}'}}]}
TOOL = {"role": "tool", "content": "x = 1 / 0   "}  # 12 bytes


def row(**changes):
    found = {
        "id": "r1", "benchmark": "swebench", "instance_id": "run", "step_index": 1, "total_steps": 2,
        "messages": [SYSTEM, ASK], "target_tier": "low", "target_tier_id": 0,
    }  # fmt: skip
    return found | changes


def bank(tmp_path, *rows):
    path = tmp_path / "question_bank.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n", encoding="utf-8")
    return path


def test_steps_of_a_run_are_joined_and_measured(tmp_path):
    as_text = {"role": "user", "content": "Fix the bug now."}  # the same message in the other form
    second = row(id="r2", step_index=2, messages=[SYSTEM, as_text, CALL, TOOL], target_tier="high", target_tier_id=3)
    other = row(id="s1", instance_id="other", benchmark="bfcl", target_tier="mid", target_tier_id=1, total_steps=1)
    table = load_steps(bank(tmp_path, second, other, row()))
    order = [table.ids.index(name) for name in ("r1", "r2", "s1")]
    assert table.gold[order].tolist() == [0, 3, 1]
    assert table.place[order].tolist() == [1, 2, 1]
    assert table.benchmark[order].tolist() == ["swebench", "swebench", "bfcl"]
    call = len("open\n" + '{"f": "a"}') / 4 + 4
    assert table.prompt_tokens[order].tolist() == [18.0, 18.0 + call + 3 + 4, 18.0]
    assert table.shared_tokens[order].tolist() == [0.0, 18.0, 0.0]
    assert table.output_tokens[order][:2].tolist() == [call, call]
    assert np.isnan(table.output_tokens[order][2])


def test_a_prompt_that_was_rewritten_shares_nothing(tmp_path):
    second = row(id="r2", step_index=2, messages=[{**SYSTEM, "content": "Other."}, ASK, CALL])
    table = load_steps(bank(tmp_path, row(), second), count=lambda text: len(text.split()))
    assert table.shared_tokens.tolist() == [0.0, 0.0]
    assert table.prompt_tokens[0] == 3 + 4 + 4 + 4 + 2


def test_an_empty_bank_has_no_steps(tmp_path):
    assert len(load_steps(bank(tmp_path))) == 0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"target_tier_id": 4}, "expected target_tier_id 0 to 3, got 4"),
        ({"target_tier": "mid"}, "expected target_tier 'low', got 'mid'"),
        ({"messages": "hello"}, "expected messages to be a list"),
    ],
)
def test_what_does_not_fit_names_its_row(tmp_path, changes, problem):
    with pytest.raises(OutcomesError, match=f"id 'r1': {problem}"):
        load_steps(bank(tmp_path, row(**changes)))


def test_missing_fields_files_and_repeated_ids_are_told(tmp_path):
    with pytest.raises(OutcomesError, match="no such file"):
        load_steps(tmp_path / "none.jsonl")
    without = row()
    del without["benchmark"]
    with pytest.raises(OutcomesError, match="benchmark"):
        load_steps(bank(tmp_path, without))
    with pytest.raises(OutcomesError, match="got 'r1' twice"):
        load_steps(bank(tmp_path, row(), row()))
