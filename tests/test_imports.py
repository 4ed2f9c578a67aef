"""Functions by name, and calls with a user's arguments."""

import math
import sys

import pytest

import nfnets
from nfnets import imports


def test_names_of_a_module_and_of_a_mapping():
    assert imports.find("sqrt", math, "function") is math.sqrt
    assert imports.find("root", {"root": math.sqrt}, "function") is math.sqrt


def test_a_path_is_imported_whatever_the_namespace():
    for namespace in (None, {}, math):
        assert imports.find("os.path:join", namespace, "function").__name__ == "join"


def test_the_current_folder_is_importable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "mine_for_imports.py").write_text("def half(x):\n    return x / 2\n")
    assert imports.find("mine_for_imports:half", None, "function")(4) == 2


@pytest.mark.parametrize(
    ("name", "namespace", "message"),
    [
        ("sqr", math, "unknown loss 'sqr'; did you mean sqrt"),
        ("x", {"cosine": len, "linear": len}, "'x'; did you mean cosine or linear"),
        ("qqqqqq", math, "unknown loss 'qqqqqq'$"),
        ("pi", math, "unknown loss 'pi'"),  # not callable
        ("sqrt", None, "loss must be 'package.module:function', not 'sqrt'"),
        ("os.path:joyn", None, "unknown loss 'os.path:joyn'; did you mean join"),
        ("nowhere.to_be:found", None, "loss 'nowhere.to_be:found': No module named"),
        (":found", None, "'' is not the name of a module"),
        ("..a:found", None, "'..a' is not the name of a module"),
    ],
)
def test_unknown_names(name, namespace, message):
    with pytest.raises(nfnets.UserError, match=message):
        imports.find(name, namespace, "loss")


def test_failures_inside_of_a_module_keep_their_traceback(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_for_imports.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        imports.find("broken_for_imports:x", None, "function")


def test_arguments_that_do_not_fit():
    def function(a, b=1, **rest):
        return a, b, rest

    assert imports.call(function, "it", 2, c=3) == (2, 1, {"c": 3})
    with pytest.raises(nfnets.UserError, match="it: missing a required argument: 'a'"):
        imports.call(function, "it", b=3)
    # Errors of the function itself are not the user's.
    with pytest.raises(TypeError, match="unsupported operand"):
        imports.call(lambda x: x + "", "it", 1)
