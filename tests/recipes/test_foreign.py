"""Errors of libraries are one line that names the options; those of metatune and of users keep their traceback."""

import importlib.util

import pytest
import torch
from trl import GRPOConfig

from metatune.curricula import load_distributions
from metatune.recipes.adapters import refusals_in_one_line
from metatune.recipes.data import split_of
from metatune.recipes.foreign import exit_code, foreign_error


def caught(function, *args, **kwargs) -> Exception:
    with pytest.raises(Exception) as error:
        function(*args, **kwargs)
    return error.value


@pytest.fixture
def users_module(tmp_path):
    """A reward function of a user's, beside the recipe."""
    path = tmp_path / "users.py"
    path.write_text("import json\n\ndef reward():\n    return json.loads('{')\n")
    spec = importlib.util.spec_from_file_location("users", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raised_through_libraries(error: BaseException) -> BaseException:
    """Drop this file's own frame: a recipe's program has only frames of metatune and of libraries."""
    return error.with_traceback(error.__traceback__.tb_next)


def test_the_options_are_named_and_the_traceback_is_kept(tmp_path):
    error = caught(torch.optim.AdamW, [torch.zeros(1)], lr=-1.0)
    line = foreign_error(raised_through_libraries(error), {"learning_rate": -1.0, "seed": 3}, str(tmp_path / "run"))
    kept = tmp_path / "run" / "error.txt"
    assert line == f"`learning_rate`: Invalid learning rate: -1.0 (ValueError in torch; traceback in {kept})"
    assert "Traceback" in kept.read_text() and "adam" in kept.read_text()


def test_a_traceback_that_has_no_folder_stays_on_the_screen():
    error = caught(torch.optim.AdamW, [torch.zeros(1)], lr=-1.0)
    assert foreign_error(raised_through_libraries(error), {"learning_rate": -1.0}, None) is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    error = caught(torch.optim.AdamW, [torch.zeros(1)], lr=-1.0)
    line = foreign_error(raised_through_libraries(error), {}, str(tmp_path / "file"))
    assert "its traceback could not be written to" in line and "\n" not in line


def test_an_option_is_found_by_its_value(tmp_path):
    from transformers import AutoTokenizer

    error = raised_through_libraries(caught(AutoTokenizer.from_pretrained, "a b"))
    line = foreign_error(error, {"chat_template_path": "a b", "bf16": True}, str(tmp_path))
    assert line.startswith("`chat_template_path`: ")


def test_a_model_that_cannot_be_loaded_is_named_where_the_error_does_not(tmp_path):
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text("{}")
    error = raised_through_libraries(caught(AutoConfig.from_pretrained, str(tmp_path)))
    line = foreign_error(error, {"model_name_or_path": "some/model", "save_strategy": "no"}, str(tmp_path / "run"))
    assert line.startswith("`model_name_or_path`: ")


def test_a_refusal_before_training_has_the_exit_code_of_one():
    with pytest.raises(OSError) as refused, refusals_in_one_line():
        raise OSError("no such model")
    assert exit_code(refused.value) == 2 and exit_code(OSError("while training")) == 1


def test_a_users_own_error_keeps_its_traceback(users_module, tmp_path):
    assert foreign_error(raised_through_libraries(caught(users_module.reward)), {}, str(tmp_path)) is None
    assert not (tmp_path / "error.txt").exists()


def test_a_refusal_of_metatune_is_told_and_a_mistake_in_it_is_not(tmp_path):
    refused = raised_through_libraries(caught(load_distributions, [{"name": "a", "source": "nothing"}]))
    assert "nothing" in foreign_error(refused, {}, str(tmp_path))
    bug = raised_through_libraries(caught(split_of, 3, "train", "rows"))
    assert not isinstance(bug, ValueError) and foreign_error(bug, {}, str(tmp_path)) is None


def test_a_refusal_of_trl_is_told(tmp_path):
    options = {"num_generations": 3, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False}
    error = raised_through_libraries(caught(GRPOConfig, output_dir=str(tmp_path), **options))
    assert "num_generations" in foreign_error(error, options, str(tmp_path))
